package deploytest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

var (
	deploy = filepath.Join("..", "..", "deploy")
	chart  = filepath.Join(deploy, "helm", "lockstep")
)

// objects are what one way to install makes, by kind and name.
type objects map[string]runtime.Object

// decoder refuses fields that the types of Kubernetes do not have, and fields that come twice.
var decoder = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme} {
		utilruntime.Must(add(scheme))
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

// operators are the kinds of the Prometheus Operator, whose types are not checked.
var operators = []string{"PodMonitor", "PrometheusRule"}

func decode(t *testing.T, text []byte) objects {
	t.Helper()
	found := objects{}
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(string(text), -1) {
		if len(bytes.TrimSpace(regexp.MustCompile(`(?m)^#.*$`).ReplaceAll([]byte(document), nil))) == 0 {
			continue
		}
		var any unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(document), &any.Object); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		name := any.GetKind() + "/" + any.GetName()
		if slices.Contains(operators, any.GetKind()) {
			found[name] = &any
			continue
		}
		object, _, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		if found[name] != nil {
			t.Errorf("%s is there twice", name)
		}
		found[name] = object
	}
	return found
}

// kustomized are the objects of a folder of deploy/kubernetes.
func kustomized(t *testing.T, folder string) objects {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(deploy, "kubernetes", folder))
	if err != nil {
		t.Fatal(err)
	}
	text, err := made.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, text)
}

// helm runs Helm, which is built from its module.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "helm"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	out, err := cmd.Output()
	return string(out) + stderr.String(), err
}

// templated are the objects of the chart with the example's values.
func templated(t *testing.T, args ...string) objects {
	t.Helper()
	out, err := helm(t, append([]string{"template", "lockstep", chart, "--kube-version", "1.34.0", "--values", filepath.Join(deploy, "helm", "example.yaml")}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return decode(t, []byte(regexp.MustCompile(`(?m)^(walk\.go|level=|coalesce).*$`).ReplaceAllString(out, "")))
}

// get returns the object of a kind and name.
func get[T runtime.Object](t *testing.T, o objects, name string) T {
	t.Helper()
	one, ok := o[name].(T)
	if !ok {
		t.Fatalf("there is no %s among %v", name, reflect.ValueOf(o).MapKeys())
	}
	return one
}

func TestKustomize(t *testing.T) { check(t, kustomized(t, "example"), "lockstep-config") }

func TestHelm(t *testing.T) {
	check(t, templated(t), "lockstep")
	if out, err := helm(t, "lint", "--strict", "--kube-version", "1.34.0", "--values", filepath.Join(deploy, "helm", "example.yaml"), chart); err != nil {
		t.Errorf("lint: %v\n%s", err, out)
	}
	all := templated(t, "--set", "podMonitor.enabled=true,prometheusRule.enabled=true,replicas=1,migrate.enabled=false,networkPolicy.enabled=false")
	rules := get[*unstructured.Unstructured](t, all, "PrometheusRule/lockstep")
	groups, _, _ := unstructured.NestedSlice(rules.Object, "spec", "groups")
	if len(groups) != 2 {
		t.Errorf("the rules have the groups %v", groups)
	}
	get[*unstructured.Unstructured](t, all, "PodMonitor/lockstep")
	for _, name := range []string{"PodDisruptionBudget/lockstep", "Job/lockstep-migrate", "NetworkPolicy/lockstep"} {
		if all[name] != nil { // a budget of one replica would stop every drain of a node
			t.Errorf("%s is there", name)
		}
	}
}

// Wrong values are refused with their place.
func TestHelmRefusesWrongValues(t *testing.T) {
	for set, want := range map[string]string{
		"config.listen=127.0.0.1:1": "config/listen", "replica=3": "replica", "image.pullpolicy=Always": "pullpolicy", "replicas=two": "replicas",
	} {
		out, err := helm(t, "template", "lockstep", chart, "--kube-version", "1.34.0", "--values", filepath.Join(deploy, "helm", "example.yaml"), "--set", set)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("--set %s: %v %s, want %s", set, err, out, want)
		}
	}
	if out, err := helm(t, "template", "lockstep", chart, "--kube-version", "1.34.0"); err == nil || !strings.Contains(out, "config/syncs") {
		t.Errorf("without a sync: %v %s", err, out)
	}
}

// Both ways make the same pods.
func TestHelmAndKustomizeAgree(t *testing.T) {
	pod := func(o objects) corev1.PodSpec {
		spec := get[*appsv1.Deployment](t, o, "Deployment/lockstep").Spec.Template.Spec
		for i := range spec.Containers {
			spec.Containers[i].ImagePullPolicy = ""
		}
		spec.Volumes[0].ConfigMap.Name = ""
		for i := range spec.TopologySpreadConstraints {
			spec.TopologySpreadConstraints[i].LabelSelector = nil
		}
		return spec
	}
	if one, other := pod(kustomized(t, "example")), pod(templated(t)); !reflect.DeepEqual(one, other) {
		t.Errorf("Kustomize makes\n%+v\nHelm makes\n%+v", one, other)
	}
}

// check checks the objects of one way to install.
func check(t *testing.T, o objects, config string) {
	t.Helper()
	relays := get[*appsv1.Deployment](t, o, "Deployment/lockstep")
	migration := get[*batchv1.Job](t, o, "Job/lockstep-migrate")
	budget := get[*policyv1.PodDisruptionBudget](t, o, "PodDisruptionBudget/lockstep")
	network := get[*networkingv1.NetworkPolicy](t, o, "NetworkPolicy/lockstep")
	service := get[*corev1.Service](t, o, "Service/lockstep")

	// The strictest of the Pod Security Standards.
	restricted, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := podsecurity.LevelVersion{Level: podsecurity.LevelRestricted, Version: podsecurity.LatestVersion()}
	for name, pod := range map[string]corev1.PodTemplateSpec{"relay": relays.Spec.Template, "migration": migration.Spec.Template} {
		for _, result := range restricted.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec) {
			if !result.Allowed {
				t.Errorf("%s: %s: %s", name, result.ForbiddenReason, result.ForbiddenDetail)
			}
		}
		c := pod.Spec.Containers[0]
		if pod.Spec.AutomountServiceAccountToken == nil || *pod.Spec.AutomountServiceAccountToken || !*c.SecurityContext.ReadOnlyRootFilesystem || *pod.Spec.SecurityContext.RunAsUser != 65532 {
			t.Errorf("%s: has a token, writes its root or is another user", name)
		}
		if len(c.Env)+len(c.EnvFrom) > 0 {
			t.Errorf("%s: has variables, which secrets must not come from", name)
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
			t.Errorf("%s: has no limit of memory or no request of CPU", name)
		}
	}

	// Relays are replaced without a gap, and spread.
	spec := relays.Spec
	if *spec.Replicas != 2 || spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 || budget.Spec.MinAvailable.IntValue() != 1 || len(spec.Template.Spec.TopologySpreadConstraints) != 2 {
		t.Errorf("replicas %d, strategy %+v, budget %+v", *spec.Replicas, spec.Strategy, budget.Spec)
	}
	for name, selector := range map[string]map[string]string{
		"deployment": spec.Selector.MatchLabels, "service": service.Spec.Selector, "budget": budget.Spec.Selector.MatchLabels, "network": network.Spec.PodSelector.MatchLabels,
		"spread": spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector.MatchLabels,
	} {
		for key, value := range selector {
			if spec.Template.Labels[key] != value {
				t.Errorf("%s: selects %v, the pods have %v", name, selector, spec.Template.Labels)
			}
		}
		if len(selector) == 0 {
			t.Errorf("%s: selects everything", name)
		}
	}
	if migration.Spec.Template.Labels["app.kubernetes.io/component"] == spec.Template.Labels["app.kubernetes.io/component"] {
		t.Error("the service and the budget select the migration too")
	}
	if from := network.Spec.Ingress[0].From; len(from) != 1 || len(from[0].PodSelector.MatchLabels) != 0 || from[0].NamespaceSelector != nil {
		t.Errorf("the network lets in %+v, want pods of the namespace", from)
	}

	// No secret is in a ConfigMap, and the program takes the configuration.
	for name, object := range o {
		if m, ok := object.(*corev1.ConfigMap); ok && strings.Contains(fmt.Sprint(m.Data), "password") {
			t.Errorf("%s has a password", name)
		}
		if _, ok := object.(*corev1.Secret); ok {
			t.Errorf("%s: the manifests must make no secret", name)
		}
	}
	written := get[*corev1.ConfigMap](t, o, "ConfigMap/"+config).Data["lockstep.yaml"]
	drain := started(t, written, spec.Template.Spec.Containers[0])
	if grace := time.Duration(*spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; grace <= drain+10*time.Second {
		t.Errorf("a pod gets %s to stop, and relay.drain is %s", grace, drain)
	}
}

// started starts the program as the container does, with a database that is away, and asks
// the probes. It returns relay.drain.
func started(t *testing.T, config string, c corev1.Container) (drain time.Duration) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "lockstep")
	if out, err := command(t, filepath.Join("..", ".."), "go", "build", "-o", program, "./cmd/lockstep"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, secret := range map[string]string{"database_url": "postgres://relay@127.0.0.1:1/agency", "court_token": "0123456789abcdef"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config = strings.ReplaceAll(config, "/run/secrets/lockstep/", dir+"/")
	file := filepath.Join(dir, "lockstep.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, dir, program, "config", "check", "--config", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := command(t, dir, program, "config", "print", "--defaults", "--config", file)
	found := regexp.MustCompile(`drain: (\S+)`).FindStringSubmatch(out)
	if err != nil || found == nil {
		t.Fatalf("%v: %s", err, out)
	}
	if drain, err = time.ParseDuration(strings.Trim(found[1], `",`)); err != nil {
		t.Fatal(err)
	}

	// The container's own arguments, on another port.
	port := fmt.Sprint(c.Ports[0].ContainerPort)
	if !strings.Contains(config, ":"+port) {
		t.Fatalf("the configuration does not listen on %s", port)
	}
	if err := os.WriteFile(file, []byte(regexp.MustCompile(`listen: .*`).ReplaceAllString(config, "listen: 127.0.0.1:0")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	relay := exec.CommandContext(ctx, program, append(slices.Clone(c.Args), "--config", file)...)
	log, err := relay.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := relay.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = relay.Wait() }()
	defer stop()
	address := listens(t, log)
	for name, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe} {
		if code := ask(t, address+probe.HTTPGet.Path); code != 200 {
			t.Errorf("%s: %s answers %d while the database is away, so the pod would be restarted", name, probe.HTTPGet.Path, code)
		}
	}
	if code := ask(t, address+c.ReadinessProbe.HTTPGet.Path); code != 503 {
		t.Errorf("readiness: answers %d while the database is away", code)
	}
	return drain
}
