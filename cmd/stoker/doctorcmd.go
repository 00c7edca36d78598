package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/cmd/stoker/doctor"
	"github.com/stoker-profiler/stoker/cmd/stoker/target"
	"github.com/stoker-profiler/stoker/hook/oci/install"
	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/containerd"
	"github.com/stoker-profiler/stoker/runtime/crio"
	"github.com/stoker-profiler/stoker/runtime/docker"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/sink/pyroscope"
	"github.com/stoker-profiler/stoker/sink/web"
)

func (a *app) doctorCommand() *cobra.Command {
	var format, bundle string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "What works on this machine, what does not, and how to mend it",
		Long: `Look at everything that stoker needs: the kernel, rights, engines' sockets, the store, Pyroscope servers, the agent if one runs,
and whether the functions of each running container have names, or why not. Nothing is changed, and servers get no profile.

STATE is ok; degraded: stoker works, and something is missing that is named; or broken: nothing would be sampled, or what the
configuration asks for cannot be. Exit code 4 if anything is broken. docs/privileges.md tells what each right is for,
docs/troubleshooting.md goes by symptom.

--bundle writes what a bug report needs into a file: these findings, the version, the configuration, the agent's metrics, state, containers
and recent log, and facts about the kernel. Passwords, tokens, headers and the values of containers' labels are left out.`,
		Example: `  sudo stoker doctor
  stoker doctor --output json
  sudo stoker doctor --bundle stoker-bundle.tar.gz`,
		Args: noArguments,
	}
	outputFlag(cmd, &format, "o", formatTable, formatJSON)
	cmd.Flags().StringVar(&bundle, "bundle", "", "write a support bundle without secrets, a `FILE` that does not exist yet (.tar.gz)")
	s := a.settings(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkFormat(format, formatTable, formatJSON); err != nil {
			return err
		}
		if bundle != "" && !strings.HasSuffix(bundle, ".tar.gz") && !strings.HasSuffix(bundle, ".tgz") {
			return usage("--bundle %s: call it .tar.gz", bundle)
		}
		l, rows, err := s.diagnose()
		if err != nil {
			return err
		}
		rows = append(rows, a.examine(cmd.Context(), l.Config)...)
		if bundle != "" {
			if err := a.writeBundle(cmd.Context(), bundle, l, rows); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "stoker: wrote %s; look into it before you pass it on: tar -tzf %s\n", clean(bundle), clean(bundle))
		}
		if format == formatJSON {
			err = printJSON(a.stdout, rows)
		} else {
			err = a.printFindings(rows)
		}
		if err == nil && doctor.Worst(rows) == doctor.Broken {
			return &exitError{exitMachine, errors.New("something is broken; the table says what, and what mends it")}
		}
		return err
	}
	return cmd
}

// diagnose reads the configuration as the agent would, and makes its mistakes findings: doctor goes on with the defaults.
func (s *settings) diagnose() (*config.Loaded, []doctor.Row, error) {
	l, err := s.load()
	if err == nil {
		return l, nil, nil
	}
	row := doctor.Row{Area: "configuration", Check: cmp.Or(s.file, s.app.getenv("STOKER_CONFIG"), config.DefaultFile)}
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		row.State, row.Detail, row.Remedy = doctor.Broken, fmt.Sprintf("%d mistakes; what follows is of the defaults", len(problems)), "stoker config check "+row.Check
	case errors.Is(err, fs.ErrPermission):
		row.State, row.Detail, row.Remedy = doctor.Degraded, "this user may not read it; what follows is of the defaults", "sudo stoker doctor"
	default:
		return nil, nil, err
	}
	l, err = config.Load(config.Options{})
	return l, []doctor.Row{row}, err
}

// printFindings writes a line for each finding, and its remedy below it.
func (a *app) printFindings(rows []doctor.Row) error {
	t := table{columns: []column{{title: "AREA"}, {title: "CHECK", shrink: true}, {title: "STATE"}, {title: "WHAT", shrink: true}}}
	var remedies []string
	for _, r := range rows {
		t.add(r.Area, r.Check, string(r.State), r.Detail)
		if r.State != doctor.OK {
			remedies = append(remedies, fmt.Sprintf("%s %s: %s\n    %s", r.Area, r.Check, r.Detail, r.Remedy))
		}
	}
	if err := t.print(a.stdout, a.width()); err != nil {
		return err
	}
	for i, r := range remedies {
		if i == 0 {
			fmt.Fprintf(a.stdout, "\nWhat to do:\n")
		}
		for line := range strings.Lines(r) {
			fmt.Fprintf(a.stdout, "  %s\n", clean(strings.TrimRight(line, "\n")))
		}
	}
	return nil
}

// examine makes the list of checks from the configuration, in the order of the data, and runs them.
func (a *app) examine(ctx context.Context, cfg config.Config) []doctor.Row {
	process, running := agentProcess(cfg.Socket)
	checks := []doctor.Check{{Area: "agent", Name: cfg.Socket, Run: func(ctx context.Context) []doctor.Finding { return agentFinding(ctx, cfg.Socket, process, running) }}}
	checks = append(checks, doctor.Machine(process, "/proc", "/sys", sampler.MayFreeze, cfg.Sampling.UntestedKernel)...)
	checks = append(checks, doctor.Engines(engines(cfg), running)...)
	checks = append(checks, hookChecks()...)
	checks = append(checks, doctor.Store(cfg.Store.Path, int64(cfg.Store.MaxSize), float64(cfg.Store.MinFree), running))
	for _, e := range cfg.Pyroscope {
		client, err := pyroscope.New(endpoint(e))
		if err != nil { // a secret's file that is not there, or not for this user
			checks = append(checks, doctor.Failed("pyroscope", cmp.Or(e.Name, e.URL), err))
			continue
		}
		defer client.Close()
		checks = append(checks, doctor.Server(client))
	}
	if cfg.Web.Listen != config.Off {
		checks = append(checks, doctor.Listen(cfg.Web.Listen, running))
	}
	rows := doctor.Run(ctx, checks, doctor.Patience)
	symbols := doctor.Symbols(func(ctx context.Context) ([]doctor.Container, error) {
		return symbolContainers(ctx, cfg.Socket, running)
	}, cfg.Symbols.Debuginfod.URLs != nil)
	return append(rows, doctor.Run(ctx, []doctor.Check{symbols}, doctor.SymbolsPatience)...)
}

// symbolContainers are the containers whose programs' names matter: those that the agent profiles, or all that have a cgroup.
func symbolContainers(ctx context.Context, socket string, running bool) ([]doctor.Container, error) {
	h, err := cgroupfs.Detect()
	if err != nil {
		return nil, err
	}
	var out []doctor.Container
	add := func(name, cgroup string) {
		out = append(out, doctor.Container{Name: name, Processes: func() ([]int, error) { return h.Processes(cgroup) }})
	}
	if running {
		all, err := newClient(socket).Containers(ctx)
		if err != nil {
			return nil, err
		}
		for _, c := range all {
			if c.GoneAt.IsZero() && c.CgroupPath != "" && c.State != registry.Excluded.String() {
				add(target.Name(c.Name, c.KubernetesContainer, c.ID), c.CgroupPath)
			}
		}
		return out, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = cgroupfs.NewScanner(h, nil).Run(ctx, func(e container.Event) {
		if e.Type == container.Synced {
			cancel()
		} else if e.Type == container.Upsert {
			add(target.Name(e.Container.Name, e.Container.KubernetesContainer, e.Container.ID), e.Container.CgroupPath)
		}
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return nil, err
	}
	return out, nil
}

// agentProcess is the process that listens at the agent's socket: its pid, or "self" and false where there is none.
func agentProcess(socket string) (process string, running bool) {
	c, err := net.DialTimeout("unix", socket, answerTimeout)
	if err != nil {
		return "self", false
	}
	defer c.Close()
	peer, err := unixsocket.PeerOf(c.(*net.UnixConn))
	if err != nil || peer.PID == 0 { // of another pid namespace
		return "self", true
	}
	return strconv.Itoa(int(peer.PID)), true
}

func agentFinding(ctx context.Context, socket, process string, running bool) []doctor.Finding {
	if !running {
		c, err := net.DialTimeout("unix", socket, answerTimeout)
		switch {
		case err == nil: // it has just come up
			c.Close()
		case errors.Is(err, fs.ErrPermission):
			return []doctor.Finding{{State: doctor.Degraded, Detail: "this user may not ask it", Remedy: "sudo stoker doctor, or join the group " + web.Group}}
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return []doctor.Finding{{State: doctor.OK, Detail: "does not run; rights are those of this command"}}
		default:
			return []doctor.Finding{{State: doctor.Degraded, Detail: err.Error(), Remedy: "journalctl -u stoker"}}
		}
	}
	h, err := newClient(socket).Health(ctx)
	if err != nil {
		return []doctor.Finding{{State: doctor.Broken, Detail: err.Error(), Remedy: "journalctl -u stoker"}}
	}
	out := []doctor.Finding{{State: doctor.OK, Detail: fmt.Sprintf("version %s runs as process %s", h.Version, process)}}
	for _, p := range h.Parts {
		state := doctor.Degraded
		switch {
		case p.State == web.OK, strings.HasPrefix(p.Name, "CAP_"): // rights are looked at below
			continue
		case p.State == web.Failing:
			state = doctor.Broken
		}
		out = append(out, doctor.Finding{Name: p.Name, State: state, Detail: p.Message, Remedy: cmp.Or(p.Remedy, "journalctl -u stoker")})
	}
	return out
}

// engines are the sockets that the agent would look at.
func engines(cfg config.Config) (all []doctor.Engine) {
	type version = func(ctx context.Context, socket string) (string, error)
	add := func(name string, configured, usual []string, ask version) {
		if len(configured) == 1 && configured[0] == config.Off {
			return
		}
		for _, at := range configured {
			all = append(all, doctor.Engine{Name: name, Socket: strings.TrimPrefix(at, "unix://"), Wanted: true, Version: ask})
		}
		if len(configured) == 0 {
			for _, at := range usual {
				all = append(all, doctor.Engine{Name: name, Socket: at, Version: ask})
			}
		}
	}
	add("containerd", cfg.Runtimes.Containerd.Address, containerd.UsualAddresses(), containerd.Version)
	add("docker", cfg.Runtimes.Docker.Address, []string{docker.DefaultAddress}, doctor.DockerVersion)
	add("podman", cfg.Runtimes.Podman.Address, nil, doctor.DockerVersion) // needs no service
	add("crio", cfg.Runtimes.CRIO.Address, []string{crio.DefaultAddress}, crio.Version)
	all = append(all, doctor.Engine{Name: "nri", Socket: cfg.Runtimes.NRI.Socket, Wanted: cfg.Runtimes.NRI.Enabled})
	return all
}

// hookChecks tell how the OCI hook stands with each engine that has it.
func hookChecks() (checks []doctor.Check) {
	for _, e := range install.Engines {
		checks = append(checks, doctor.Check{Area: "hook", Name: string(e), Run: func(ctx context.Context) []doctor.Finding {
			s := install.Config{Binary: install.Binary}.Status(ctx, e)
			switch {
			case s.Err != "":
				return []doctor.Finding{{State: doctor.Degraded, Detail: s.Err, Remedy: "stoker hook status"}}
			case len(s.NamedBy) == 0:
				return nil // it is an offer, not a need
			case s.BinaryErr != "":
				return []doctor.Finding{{State: doctor.Broken, Detail: "containers may fail to start: " + s.BinaryErr, Remedy: "sudo stoker hook uninstall --runtime " + string(e)}}
			case s.SocketErr != "":
				return []doctor.Finding{{State: doctor.Degraded, Detail: "announces to nobody: " + s.SocketErr, Remedy: "systemctl start stoker"}}
			case !s.UpToDate:
				return []doctor.Finding{{State: doctor.Degraded, Detail: "installed by another version", Remedy: "sudo stoker hook install --runtime " + string(e)}}
			}
			return []doctor.Finding{{State: doctor.OK, Detail: "installed"}}
		}})
	}
	return checks
}
