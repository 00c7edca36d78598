package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/symbol/debuginfod"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/native"
	"github.com/stoker-profiler/stoker/bpf/unwind/node"
	"github.com/stoker-profiler/stoker/bpf/unwind/python"
	"github.com/stoker-profiler/stoker/bpf/unwind/ruby"
	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/hook/nri"
	"github.com/stoker-profiler/stoker/hook/oci"
	"github.com/stoker-profiler/stoker/internal/privilege"
	"github.com/stoker-profiler/stoker/labeler"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/containerd"
	"github.com/stoker-profiler/stoker/runtime/crio"
	"github.com/stoker-profiler/stoker/runtime/docker"
	"github.com/stoker-profiler/stoker/runtime/podman"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/runtime/systemd"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/pyroscope"
	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
)

// This file wires the agent, in the order of the data:
//
//	container event → registry → scope → kernel → stack → symbols → labels → pprof → store → sink

// agent is all parts of a running agent. What a field does not guard itself, run's goroutines do not share.
type agent struct {
	cfg       config.Config
	log       *slog.Logger
	version   string
	node      string
	startedAt time.Time

	rights     privilege.Set
	hierarchy  cgroupfs.Hierarchy
	unwinders  []unwind.Unwinder
	sampler    sampling
	blind      *blind // the sampler, where the rights for one are missing; else nil
	registry   *registry.Registry
	sources    []container.Source
	units      *systemd.Source // one of the sources: it is told of a new configuration
	kernel     *symbol.Kernel  // nil: kernel addresses have no names; kernelErr says why
	kernelErr  error
	files      *symbol.Cache
	debugFiles *debuginfod.Client // nil: nobody is asked for debug files
	symbolizer *unwind.Symbolizer
	labeler    atomic.Pointer[labeler.Labeler]
	pipeline   *pipeline
	notify     notifier
	writer     *writer      // nil: nothing is kept
	store      *store.Store // nil: nothing is kept
	uploaders  []sink.Uploader
	metrics    http.Handler
}

// fileCacheBytes bounds the symbols of all files together. 20 containers with a few large binaries each fit.
const fileCacheBytes = 24 << 20

// newAgent makes the parts that stoker run, and record, top and ps without an agent, have in common: all up to the pprof.
func newAgent(cfg config.Config, log *slog.Logger, version string) (_ *agent, err error) {
	a := &agent{cfg: cfg, log: log, version: version, startedAt: time.Now(), notify: notifier{log}}
	defer func() {
		if err != nil && a.sampler != nil {
			a.sampler.Close()
		}
	}()
	if a.node, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("learn the name of this node: %w", err)
	}

	// Rights: what is missing is said once and by name.
	if a.rights, err = privilege.Of("self"); err != nil {
		return nil, err
	}
	missing := a.rights.Missing()
	for _, c := range missing {
		if !c.Essential {
			log.Warn("a capability is missing", "capability", c.Name, "lost", c.Lost, "remedy", c.Remedy())
		}
	}

	// Kernel: what samples, and the scopes that the registry will fill.
	if a.hierarchy, err = cgroupfs.Detect(); err != nil {
		return nil, fmt.Errorf("find the cgroup hierarchy: %w", err)
	}
	code := native.New()
	a.unwinders = []unwind.Unwinder{code} // the native walk first: it ends in the languages
	if cfg.Unwind.Python != config.Off {
		a.unwinders = append(a.unwinders, python.New(log))
	}
	if cfg.Unwind.Node != config.Off {
		a.unwinders = append(a.unwinders, node.New(log))
	}
	if cfg.Unwind.Ruby != config.Off {
		a.unwinders = append(a.unwinders, ruby.New(log))
	}
	kernelSide, err := sampler.Open(sampler.Config{
		FrequencyHz:      cfg.Sampling.Frequency,
		UntestedKernel:   cfg.Sampling.UntestedKernel,
		CgroupController: a.hierarchy.Controller,
		Unwinders:        a.unwinders,
		Log:              log,
	})
	var scopes registry.Scopes
	if err == nil {
		a.sampler, scopes = kernelSide, kernelSide.Scopes()
	} else if a.blind = blinded(missing, err); a.blind != nil {
		a.sampler, scopes = a.blind, a.blind
	} else {
		return nil, err
	}

	// Containers: sources speak to the registry, the registry to the scopes.
	a.registry = registry.New(registry.Config{
		Scopes:          scopes,
		Frequency:       cfg.Sampling.Frequency,
		Targets:         targetRules(cfg),
		ContainerLabels: labelPolicy(cfg),
		Log:             log,
	})
	if a.sources, err = a.newSources(); err != nil {
		return nil, err
	}

	// Symbols.
	if a.kernel, a.kernelErr = symbol.NewKernel("/proc"); a.kernelErr != nil {
		log.Warn("kernel functions will have no names", "err", a.kernelErr)
	}
	a.files = symbol.NewCache(fileCacheBytes)
	if cfg.Symbols.Debuginfod.URLs != nil {
		if a.debugFiles, err = debuginfod.New(a.debuginfodConfig()); err != nil {
			return nil, err
		}
		code.FetchDebugFiles(a.debugFiles.Open)
	}
	a.symbolizer = unwind.NewSymbolizer(unwind.SymbolizerConfig{
		Unwinders:   a.unwinders,
		Cache:       a.files,
		Kernel:      a.kernel,
		Peers:       a.peers,
		Current:     a.sampler.Current,
		RaiseEpoch:  a.sampler.RaiseEpoch,
		SetSpace:    a.sampler.SetSpace,
		SetLanguage: a.sampler.SetLanguage,
	})

	// Labels and profiles.
	l, err := labeler.New(a.labels(cfg))
	if err != nil {
		return nil, fmt.Errorf("labels: %w", err)
	}
	a.labeler.Store(l)
	period := time.Second.Nanoseconds() / int64(cfg.Sampling.Frequency)
	a.pipeline = newPipeline(a.symbolizer, a.registry, a.labeler.Load, period, log)
	return a, nil
}

// newSources lists the sources of containers: the runtimes, and the cgroup tree for what no runtime tells.
func (a *agent) newSources() ([]container.Source, error) {
	at := a.cfg.Runtimes
	var sources []container.Source
	for _, engine := range []struct {
		name      string
		addresses []string
		sources   func(addresses []string) ([]container.Source, error)
	}{
		{"containerd", at.Containerd.Address, func(addresses []string) ([]container.Source, error) {
			return containerd.Sources(containerd.Config{Addresses: addresses, Hierarchy: a.hierarchy, Log: a.log})
		}},
		{"docker", at.Docker.Address, func(addresses []string) ([]container.Source, error) {
			return docker.Sources(docker.Config{Addresses: addresses, Log: a.log})
		}},
		{"podman", at.Podman.Address, func(addresses []string) ([]container.Source, error) {
			return podman.Sources(podman.Config{Addresses: addresses, Hierarchy: a.hierarchy, Log: a.log})
		}},
		{"cri-o", at.CRIO.Address, func(addresses []string) ([]container.Source, error) {
			return crio.Sources(crio.Config{Addresses: addresses, Hierarchy: a.hierarchy, Log: a.log})
		}},
	} {
		if len(engine.addresses) == 1 && engine.addresses[0] == config.Off {
			continue
		}
		found, err := engine.sources(engine.addresses)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", engine.name, err)
		}
		sources = append(sources, found...)
	}
	if at.NRI.Enabled {
		plugin, err := nri.New(nri.Config{Socket: at.NRI.Socket, Hierarchy: a.hierarchy, Log: a.log})
		if err != nil {
			return nil, err
		}
		sources = append(sources, plugin)
	}
	if socket := at.Hook.Socket; socket != config.Off {
		sources = append(sources, oci.New(oci.Config{Socket: socket, Hierarchy: a.hierarchy, Log: a.log}))
	}
	a.units = systemd.New(systemd.Config{Patterns: a.cfg.Systemd, Hierarchy: a.hierarchy, Log: a.log})
	return append(sources, a.units, cgroupfs.NewScanner(a.hierarchy, a.log)), nil
}

// runAgent is `stoker run`: it blocks until ctx ends, then writes the open window and returns. reload reads the configuration
// again, for SIGHUP.
func runAgent(ctx context.Context, cfg config.Config, log *slog.Logger, version string, reload <-chan config.Config) (err error) {
	a, err := newAgent(cfg, log, version)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.sampler.Close()) }()
	if a.blind != nil {
		for _, c := range a.blind.lacks {
			log.Error("a capability is missing", "capability", c.Name, "lost", c.Lost, "remedy", c.Remedy(), "err", a.blind.err)
		}
	}
	a.notify.starting(cfg.Sampling.Window)

	// Sinks: the store first; it is the queue of the others.
	for _, e := range cfg.Pyroscope {
		u, err := pyroscope.New(endpoint(e))
		if err != nil {
			return fmt.Errorf("pyroscope endpoint %s: %w", e.Name, err)
		}
		a.uploaders = append(a.uploaders, u)
	}
	if a.store, err = store.Open(a.storeConfig()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.store.Close()) }()
	a.writer = newWriter(a.store, log)
	a.pipeline.write = a.writer.write
	a.metrics = a.newMetrics()

	// What serves ends after what samples, so that the last window is written and seen.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	var servers errgroup.Group
	if err := a.serve(serving, &servers); err != nil {
		return err
	}
	for i, u := range a.uploaders {
		a.background(serving, &servers, "deliveries to "+u.Name(), func() error {
			return a.store.Deliver(serving, u, deliverConfig(cfg.Pyroscope[i]))
		})
	}
	if a.debugFiles != nil {
		a.background(serving, &servers, "fetching debug files", func() error { return a.debugFiles.Run(serving) })
	}
	a.background(serving, &servers, "writing to the store", func() error { a.writer.run(serving); return nil })
	a.background(serving, &servers, "reloading", func() error { a.watchReload(ctx, reload); return nil })

	if err := trimMemory(); err != nil {
		log.Debug("memory of the start is kept", "err", err)
	}
	log.Info("stoker runs", "version", version, "frequency", cfg.Sampling.Frequency, "window", cfg.Sampling.Window,
		"store", cfg.Store.Path, "web", cfg.Web.Listen, "socket", cfg.Socket, "cgroup", a.hierarchy.Mount)
	defer context.AfterFunc(ctx, a.notify.stopping)()
	syncing, stopSyncing := context.WithCancel(ctx)
	defer stopSyncing()
	go func() { // ready: what already runs is in scope, but for what a source tells that hangs
		a.registry.WaitSynced(syncing, len(a.sources), syncWait)
		if syncing.Err() == nil {
			a.notify.ready()
		}
	}()
	err = a.sample(ctx, watched{a.pipeline, a.notify, a.state})
	a.writer.flush()
	stopServing()
	return errors.Join(err, servers.Wait())
}

// syncWait is how long the service manager waits for sources to tell what already runs.
const syncWait = 5 * time.Second

// state is what the service manager shows of the agent.
func (a *agent) state() string {
	if a.blind != nil {
		return a.blind.Error()
	}
	return fmt.Sprintf("%d containers in scope", a.inScope())
}

// inScope counts the containers whose samples are taken now.
func (a *agent) inScope() (n int) {
	for _, rec := range a.registry.List() {
		if rec.GoneAt.IsZero() && rec.Profiled() {
			n++
		}
	}
	return n
}

// apply takes what a source says: the registry first, then the sources that can say more once they know that there is something.
func (a *agent) apply(e container.Event) {
	a.registry.Apply(e)
	if e.Type != container.Upsert || e.Complete {
		return
	}
	for _, s := range a.sources {
		if h, ok := s.(container.Hinted); ok {
			h.Hint(e.Container)
		}
	}
}

// sample runs sources, sampler and pipeline until ctx ends and the last window has gone through. h is the pipeline, or what passes
// everything on to it.
func (a *agent) sample(ctx context.Context, h sampler.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sources, ctx := errgroup.WithContext(ctx)
	for _, s := range a.sources {
		sources.Go(func() error {
			if err := ended(ctx, s.Run(ctx, a.apply)); err != nil {
				return fmt.Errorf("source %s: %w", s.Name(), err)
			}
			return nil
		})
	}
	sources.Go(func() error { a.sweep(ctx); return nil })
	for _, u := range a.unwinders {
		r, ok := u.(unwind.Runner)
		if !ok || a.blind != nil { // nothing to unwind for
			continue
		}
		sources.Go(func() error {
			if err := r.Run(ctx); err != nil { // stacks are still walked, if not as well
				a.log.Error("an unwinder has stopped to read tables; restart stoker to have it back", "unwinder", u.Name(), "err", err)
			}
			return nil
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); a.pipeline.run() }()
	err := a.sampler.Run(ctx, a.cfg.Sampling.Window, h)
	cancel() // also when the sampler failed: an agent that samples nothing must end, not linger
	a.pipeline.stop()
	<-done
	return errors.Join(err, sources.Wait())
}

// sweepEvery is how often the cgroups of all containers are looked for.
const sweepEvery = 10 * time.Second

// sweep ends containers whose cgroup is gone and whose end nobody told, until ctx ends.
func (a *agent) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var live []container.Container
		for _, rec := range a.registry.List() {
			if rec.GoneAt.IsZero() {
				live = append(live, rec.Container)
			}
		}
		a.hierarchy.Sweep(live, a.registry.Apply)
	}
}

// background runs a part beside the sampling. When one ends before it is told to, that is said at once: profiles are still
// taken and kept, so the agent goes on.
func (a *agent) background(ctx context.Context, g *errgroup.Group, what string, f func() error) {
	g.Go(func() error {
		err := ended(ctx, f())
		if err != nil {
			a.log.Error("a part of stoker has stopped; restart stoker to have it back", "part", what, "err", err)
		}
		return err
	})
}

// ended turns the error of a context that was cancelled on purpose into nil.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// serve opens the web page and the socket, and answers on both.
func (a *agent) serve(ctx context.Context, servers *errgroup.Group) error {
	wc := web.Config{Logger: a.log, Window: a.cfg.Sampling.Window, Hosts: a.cfg.Web.Hosts}
	var token string
	if f := a.cfg.Web.TokenFile; f != "" {
		var err error
		if token, err = web.ReadToken(f); err != nil {
			return err
		}
	}
	if dir := filepath.Dir(a.cfg.Socket); dir != "." {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the directory of the agent's socket: %w; name another place with the key socket", err)
		}
	}
	open := func(addr string, c web.Config) error {
		l, err := web.Listen(addr, web.Group)
		if err != nil {
			return err
		}
		h, err := web.Handler(backend{a}, a.store, c)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		a.background(ctx, servers, "serving on "+addr, func() error { return web.Serve(ctx, l, h, a.log) })
		return nil
	}
	if err := open("unix:"+a.cfg.Socket, wc); err != nil {
		return err
	}
	if a.cfg.Web.Listen == config.Off {
		return nil
	}
	wc.Token = token
	return open(a.cfg.Web.Listen, wc)
}

// localWindow is the longest window of a command's own sampler: somebody waits for what it shows, and nothing is stored.
const localWindow = 2 * time.Second

// startLocal starts a sampler for one command, where no agent runs: the same parts, but nothing is kept or served.
func startLocal(ctx context.Context, cfg config.Config, log *slog.Logger) (web.Backend, func() error, error) {
	cfg.Sampling.Window = min(cfg.Sampling.Window, localWindow)
	cfg.Runtimes.NRI.Enabled = false      // nobody who looks at a node is to be in the way of its starts
	cfg.Symbols.Debuginfod.URLs = nil     // its cache is the agent's
	cfg.Runtimes.Hook.Socket = config.Off // it belongs to the agent; a command is gone in a moment
	a, err := newAgent(cfg, log, buildVersion())
	if err != nil {
		return nil, nil, err
	}
	if a.blind != nil { // it would have nothing to show
		return nil, nil, a.blind
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.sample(ctx, a.pipeline) }()
	stop := func() error {
		cancel()
		return errors.Join(<-done, a.sampler.Close())
	}
	// Sources tell what already runs within a moment; a source that hangs must not hold up the command.
	a.registry.WaitSynced(ctx, len(a.sources), 2*time.Second)
	return backend{a}, stop, nil
}

// peers lists other processes of a container, for the files of one that is gone.
func (a *agent) peers(scope uint32) []int {
	rec, ok := a.registry.Lookup(scope)
	if !ok || rec.CgroupPath == "" {
		return nil
	}
	pids, err := a.hierarchy.Processes(rec.CgroupPath)
	if err != nil && rec.PID != 0 { // the cgroup is gone, or not readable: its first process may still be there
		return []int{rec.PID}
	}
	return pids
}

// watchReload takes new configurations until ctx ends. What cannot change live is said by who sends them.
func (a *agent) watchReload(ctx context.Context, reload <-chan config.Config) {
	for {
		select {
		case <-ctx.Done():
			return
		case cfg := <-reload:
			l, err := labeler.New(a.labels(cfg))
			if err != nil {
				a.log.Error("the new labels are not used", "err", err)
				continue
			}
			a.labeler.Store(l)
			a.registry.SetTargets(targetRules(cfg), labelPolicy(cfg))
			a.units.SetPatterns(cfg.Systemd)
			a.log.Info("configuration reloaded")
		}
	}
}
