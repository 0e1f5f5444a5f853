package pgtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
)

// DefaultImage is the image of the container route unless [EnvImage] names another.
const DefaultImage = "postgres:18-alpine"

const (
	engineTimeout = 3 * time.Second // for a Docker engine to answer
	pullTimeout   = time.Minute     // for an image to be pulled
)

// errNoEngine says that there is no Docker engine. It is not printed.
var errNoEngine = errors.New("pgtest: no Docker engine answers")

// container is a server in a Docker container. Its port on the host is fixed, so that
// its URL is the same after a kill and a boot.
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
	address := ""
	if host == "localhost" { // not reachable from other machines
		address, host = "127.0.0.1", "127.0.0.1"
	}
	password := rand.Text()
	admin := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", password),
		Host: net.JoinHostPort(host, strconv.Itoa(port)), Path: "/postgres", RawQuery: "sslmode=disable",
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
		testcontainers.WithExposedPorts("5432/tcp"),
		fields(testcontainers.WithHostConfigModifier, fmt.Sprintf(`{"PortBindings": {"5432/tcp": [{"HostIp": %q, "HostPort": "%d"}]}}`, address, port)),
		testcontainers.WithCmd(args...),
		fields(testcontainers.WithConfigModifier, `{"StopSignal": "SIGKILL"}`), // see kill
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

// fields sets fields of a type of Docker's API by their JSON names, so that this module
// does not import a package of Docker.
func fields[T any](option func(func(*T)) testcontainers.CustomizeRequestOption, values string) testcontainers.CustomizeRequestOption {
	return option(func(t *T) { _ = json.Unmarshal([]byte(values), t) })
}

// connectDocker returns a client of the Docker engine, or [errNoEngine].
func connectDocker(ctx context.Context) (*testcontainers.DockerProvider, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	// testcontainers writes about every engine to stderr.
	log.SetDefault(log.NewNoopLogger())
	// The provider's constructor takes no context. This call finds out within the
	// deadline whether an engine answers.
	if _, err := testcontainers.NewDockerClientWithOpts(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoEngine, err)
	}
	docker, err := testcontainers.NewDockerProvider(testcontainers.Generic2DockerOptions(testcontainers.WithLogger(log.NewNoopLogger()))...)
	if err == nil {
		err = docker.Health(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoEngine, err)
	}
	return docker, nil
}

// haveImage pulls the image if it is missing. It fails after [pullTimeout].
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

// kill sends the stop signal, which is SIGKILL.
func (c *container) kill(ctx context.Context) error {
	if !c.runs {
		return errNotRunning
	}
	err := c.container.Stop(ctx, nil)
	c.runs = err != nil
	return err
}

// shutdown sends the postmaster SIGINT and waits for its end.
func (c *container) shutdown(ctx context.Context) error {
	if !c.runs {
		return errNotRunning
	}
	if _, _, err := c.container.Exec(ctx, []string{"sh", "-c", "kill -INT 1"}); err != nil {
		return err
	}
	for pause := time.NewTicker(20 * time.Millisecond); ; {
		state, err := c.container.State(ctx)
		if err != nil {
			return err
		}
		if !state.Running {
			c.runs = false
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-pause.C:
		}
	}
}

func (c *container) boot(ctx context.Context) error {
	if c.runs || c.container == nil {
		return errors.New("only a server that was ended can be booted")
	}
	if err := c.container.Start(ctx); err != nil {
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
