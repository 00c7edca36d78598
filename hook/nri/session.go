package nri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// pluginIndex is our place among the plugins of a runtime: the last, for what those before us refuse never starts.
const pluginIndex = "99"

var (
	errLost   = errors.New("the connection has ended")
	errSilent = errors.New("no answer")
	errLagged = errors.New("too many events wait")
)

// session is one connection. Its methods are what the runtime calls, one at a time, in the goroutines of the stub's server; none of
// them returns an error.
type session struct {
	p    *Plugin
	emit func(container.Event)

	// The worker's: what Configure says, which the runtime calls before anything else.
	runtime, namespace string

	synced chan struct{} // closed after the first Synchronize
	closed chan struct{} // closed when the connection has ended
	lagged chan struct{} // closed when an event was lost
	once   struct{ synced, closed, lagged sync.Once }
}

var (
	_ stub.ConfigureInterface       = (*session)(nil)
	_ stub.SynchronizeInterface     = (*session)(nil)
	_ stub.RunPodInterface          = (*session)(nil)
	_ stub.RemovePodInterface       = (*session)(nil)
	_ stub.StartContainerInterface  = (*session)(nil)
	_ stub.StopContainerInterface   = (*session)(nil)
	_ stub.RemoveContainerInterface = (*session)(nil)
)

// connect connects, registers and serves events until the connection is lost or ctx ends. synced tells whether the runtime has told
// what exists.
func (p *Plugin) connect(ctx context.Context, emit func(container.Event)) (synced bool, err error) {
	conn, err := p.dial(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(withoutLog(ctx))
	defer cancel()
	s := &session{p: p, emit: emit, synced: make(chan struct{}), closed: make(chan struct{}), lagged: make(chan struct{})}
	registered := make(chan struct{})
	noteRegistered := func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
		err := invoke(ctx, req, resp)
		if err == nil {
			close(registered)
		}
		return err
	}
	// There is a policy by which a runtime keeps a plugin that was late (KeepConnected, nri 0.12.5). We do not ask for it: only an
	// agent that is stopped or starved is ever late, and it would then hold up every start for two seconds. Cut off, it holds up one,
	// and comes back when it can.
	st, err := stub.New(s,
		stub.WithLogger(logger{p.log}),
		stub.WithPluginName("stoker"),
		stub.WithPluginIdx(pluginIndex),
		stub.WithConnection(conn),
		stub.WithOnClose(func() { s.once.closed.Do(func() { close(s.closed) }) }),
		stub.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(noteRegistered)}, nil),
	)
	if err != nil {
		return false, errors.Join(err, conn.Close())
	}

	started := make(chan error, 1)
	go func() { started <- st.Start(ctx) }()
	patience := time.NewTimer(p.times.start)
	defer patience.Stop()
	select {
	case err = <-started:
		if err != nil {
			return false, fmt.Errorf("register: %w", err)
		}
	case <-patience.C:
		err = fmt.Errorf("register: %w within %s", errSilent, p.times.start)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		// The stub waits for a runtime that has registered it to configure it, however long that takes and whether or not the
		// connection still exists (nri 0.12). Do it in the runtime's place, so that Start returns.
		conn.Close()
		cancel()
		select {
		case startErr := <-started:
			if startErr == nil {
				st.Stop()
			}
		case <-registered:
			_, _ = st.(api.PluginService).Configure(context.Background(), &api.ConfigureRequest{})
			if <-started == nil {
				st.Stop()
			}
		}
		return false, err
	}
	p.n.connects.Add(1)
	patience.Reset(p.times.sync)
	for {
		select {
		case <-s.closed:
			return s.isSynced(), errLost
		case <-s.lagged:
			st.Stop()
			return s.isSynced(), errLagged
		case <-ctx.Done():
			st.Stop()
			return s.isSynced(), ctx.Err()
		case <-patience.C:
			if !s.isSynced() {
				st.Stop()
				return false, fmt.Errorf("registered, but told nothing: %w within %s", errSilent, p.times.sync)
			}
		}
	}
}

func (s *session) isSynced() bool {
	select {
	case <-s.synced:
		return true
	default:
		return false
	}
}

// do has the worker do what an event asks for.
func (s *session) do(f func()) {
	begin := time.Now()
	s.hand(f)
	if time.Since(begin) > slowHold {
		s.p.n.slow.Add(1)
	}
}

// hand is do for what may take longer than an event.
func (s *session) hand(f func()) {
	defer s.p.recover()
	if !s.p.do(f) {
		s.once.lagged.Do(func() { close(s.lagged) })
	}
}

func (s *session) say(typ container.EventType, c container.Container, at time.Time) {
	s.emit(container.Event{Type: typ, Source: name, Complete: typ == container.Upsert, Container: c, At: at})
}

// Configure is the first call: the runtime says who it is. No event mask means all that we have methods for.
func (s *session) Configure(_ context.Context, _, runtime, version string) (api.EventMask, error) {
	s.do(func() {
		s.runtime, s.namespace = runtimeName(runtime)
		s.p.log.Debug("registered with NRI", "runtime", runtime, "version", version)
		s.p.setStatus(container.Status{Err: "registered with NRI at " + s.p.socket + ", which tells what exists once no container is being started or stopped"})
	})
	return 0, nil
}

// Synchronize is told everything that exists, at every connection. While it runs the runtime starts and stops nothing.
func (s *session) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	s.p.n.syncs.Add(1)
	at := time.Now()
	s.hand(func() {
		s.say(container.Syncing, container.Container{}, at)
		byID := make(map[string]*api.PodSandbox, len(pods))
		for _, pod := range pods {
			byID[pod.GetId()] = pod
			s.say(container.Upsert, s.pod(pod), at)
		}
		for _, c := range containers {
			switch c.GetState() {
			case api.ContainerState_CONTAINER_CREATED, api.ContainerState_CONTAINER_RUNNING, api.ContainerState_CONTAINER_PAUSED:
				s.say(container.Upsert, s.container(byID[c.GetPodSandboxId()], c), at)
			}
		}
		s.say(container.Synced, container.Container{}, at)
		s.once.synced.Do(func() { close(s.synced) })
		if s.p.setStatus(container.Status{Connected: true}) {
			s.p.log.Info("connected to NRI", "socket", s.p.socket, "runtime", s.runtime, "pods", len(pods), "containers", len(containers))
		}
	})
	return nil, nil
}

// StartContainer comes when the container's first process has been made and waits, in its cgroup, to become the user's program.
func (s *session) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	s.p.n.starts.Add(1)
	at := time.Now()
	s.do(func() { s.say(container.Upsert, s.container(pod, c), at) })
	return nil
}

// StopContainer comes when the container's processes have ended, by themselves or because somebody wanted it.
func (s *session) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	s.p.n.stops.Add(1)
	s.gone(c.GetId())
	return nil, nil
}

// RemoveContainer comes when the record of a container is deleted, started or not.
func (s *session) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	s.gone(c.GetId())
	return nil
}

// RunPodSandbox comes when the pod's pause container runs.
func (s *session) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	s.p.n.pods.Add(1)
	at := time.Now()
	s.do(func() { s.say(container.Upsert, s.pod(pod), at) })
	return nil
}

// RemovePodSandbox comes when all of a pod has ended.
func (s *session) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	s.gone(pod.GetId())
	return nil
}

func (s *session) gone(id string) {
	at := time.Now()
	// Without a pid: the one in the event is out of date. A container of a pod runs once.
	s.do(func() {
		s.say(container.Gone, container.Container{ID: id, Runtime: s.runtime, Namespace: s.namespace}, at)
	})
}

// withoutLog silences the server of the stub, which writes to stderr whatever a connection ends with: we say that ourselves, once.
func withoutLog(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// logger makes the stub's log ours. What it calls information is a line for each of its steps.
type logger struct{ log *slog.Logger }

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.debug(ctx, format, args)
}
func (l logger) Infof(ctx context.Context, format string, args ...any)  { l.debug(ctx, format, args) }
func (l logger) Warnf(ctx context.Context, format string, args ...any)  { l.debug(ctx, format, args) }
func (l logger) Errorf(ctx context.Context, format string, args ...any) { l.debug(ctx, format, args) }

func (l logger) debug(ctx context.Context, format string, args []any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, strings.TrimSuffix(fmt.Sprintf(format, args...), "\n"))
	}
}
