package pgtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
)

// DefaultImage is the image of the container route unless [EnvImage] names another.
const DefaultImage = "postgres:18-alpine"

const (
	engineTimeout = 3 * time.Second // for a Docker engine to answer
	pullTimeout   = time.Minute     // for an image to be pulled
)

// errNoEngine says that there is no Docker engine, which is no news worth printing.
var errNoEngine = errors.New("pgtest: no Docker engine answers")

// container is a server in a Docker container. Its port on the host is fixed,
// so that its URL survives a kill and boot.
type container struct {
	docker    *testcontainers.DockerProvider
	container *testcontainers.DockerContainer // nil when stopped
	admin     string
	runs      bool
}

// startContainer starts the image in a container of its own.
func startContainer(ctx context.Context, opts Options) (_ *Server, err error) {
	image := cmp.Or(os.Getenv(EnvImage), DefaultImage)
	docker, err := connectDocker(ctx)
	if err != nil {
		return nil, err
	}
	c := &container{docker: docker}
	defer func() {
		if err != nil {
			err = fmt.Errorf("pgtest: image %s: %w", image, err)
			_ = c.stop()
		}
	}()
	if err := c.haveImage(ctx, image); err != nil {
		return nil, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	host, err := docker.DaemonHost(ctx)
	if err != nil {
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	internal := network.MustParsePort("5432/tcp")
	publish := network.PortBinding{HostPort: strconv.Itoa(port)}
	if host == "localhost" { // not to be reached from elsewhere
		publish.HostIP = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		host = publish.HostIP.String()
	}
	password := rand.Text()
	admin := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", password),
		Host: net.JoinHostPort(host, publish.HostPort), Path: "/postgres", RawQuery: "sslmode=disable",
	}
	c.admin = admin.String()

	settings := baseSettings(opts)
	args := []string{"postgres"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	c.container, err = testcontainers.Run(ctx, image,
		testcontainers.WithLogger(log.NewNoopLogger()),
		testcontainers.WithEnv(map[string]string{"POSTGRES_PASSWORD": password, "POSTGRES_USER": "postgres", "POSTGRES_DB": "postgres"}),
		testcontainers.WithExposedPorts(internal.String()),
		testcontainers.WithHostConfigModifier(func(hc *moby.HostConfig) {
			hc.PortBindings = network.PortMap{internal: {publish}}
		}),
		testcontainers.WithCmd(args...),
	)
	if err != nil {
		return nil, err
	}
	c.runs = true
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	return &Server{route: Container, admin: admin, engine: c}, nil
}

// connectDocker returns a client of the Docker engine, or [errNoEngine].
func connectDocker(ctx context.Context) (*testcontainers.DockerProvider, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	// testcontainers greets every engine on stderr, by a logger of its package.
	log.SetDefault(log.NewNoopLogger())
	// The provider's own constructor takes no context; this one settles, within
	// the deadline, whether there is an engine at all.
	probe, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoEngine, err)
	}
	defer func() { _ = probe.Close() }()
	if _, err := probe.Ping(ctx, client.PingOptions{}); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoEngine, err)
	}
	return testcontainers.NewDockerProvider(testcontainers.Generic2DockerOptions(testcontainers.WithLogger(log.NewNoopLogger()))...)
}

// haveImage makes sure that the image is there, or fails within [pullTimeout].
func (c *container) haveImage(ctx context.Context, image string) error {
	if _, err := c.docker.Client().ImageInspect(ctx, image); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, pullTimeout, fmt.Errorf("not pulled within %s", pullTimeout))
	defer cancel()
	if err := c.docker.PullImage(ctx, image); err != nil {
		return fmt.Errorf("pull: %w", cmp.Or(context.Cause(ctx), err))
	}
	return nil
}

// ready waits for the server. The image sets itself up with a server that has
// no TCP port, so the first answer comes from the real one.
func (c *container) ready(ctx context.Context) error {
	if err := awaitReady(ctx, c.admin, nil); err != nil {
		return fmt.Errorf("%w; the container's log ends with:\n%s", err, c.logTail())
	}
	return nil
}

func (c *container) logTail() string {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	logs, err := c.container.Logs(ctx)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = logs.Close() }()
	said, _ := io.ReadAll(io.LimitReader(logs, 1<<20))
	return tail(said)
}

func (c *container) kill(ctx context.Context) error     { return c.end(ctx, "SIGKILL") }
func (c *container) shutdown(ctx context.Context) error { return c.end(ctx, "SIGINT") }

// end sends the postmaster a signal and waits for its end.
func (c *container) end(ctx context.Context, signal string) error {
	if !c.runs {
		return errNotRunning
	}
	id := c.container.GetContainerID()
	docker := c.docker.Client()
	ended := docker.ContainerWait(ctx, id, client.ContainerWaitOptions{})
	if _, err := docker.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: signal}); err != nil {
		return err
	}
	select {
	case <-ended.Result:
	case err := <-ended.Error:
		return err
	}
	c.runs = false
	return nil
}

func (c *container) boot(ctx context.Context) error {
	if c.runs || c.container == nil {
		return errors.New("only a server that was ended can be booted")
	}
	if _, err := c.docker.Client().ContainerStart(ctx, c.container.GetContainerID(), client.ContainerStartOptions{}); err != nil {
		return err
	}
	c.runs = true
	return c.ready(ctx)
}

func (c *container) stop() error {
	if c.docker == nil {
		return nil
	}
	err := testcontainers.TerminateContainer(c.container, testcontainers.StopTimeout(0))
	err = errors.Join(err, c.docker.Close())
	c.container, c.docker, c.runs = nil, nil, false
	return err
}
