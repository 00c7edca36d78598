package main

import (
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
	"github.com/stoker-profiler/stoker/hook/oci/install"
	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"github.com/stoker-profiler/stoker/runtime/containerd"
	"github.com/stoker-profiler/stoker/runtime/crio"
	"github.com/stoker-profiler/stoker/runtime/docker"
	"github.com/stoker-profiler/stoker/sink/pyroscope"
	"github.com/stoker-profiler/stoker/sink/web"
)

func (a *app) doctorCommand() *cobra.Command {
	var format, bundle string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "What works on this machine, what does not, and how to mend it",
		Long: `Look at everything that stoker needs: the kernel, rights, engines' sockets, the store, Pyroscope servers, the agent if one runs.
Nothing is changed, and servers get no profile. STATE is ok; degraded: stoker works, and something is missing that is named; or broken:
nothing would be sampled, or what the configuration asks for cannot be. Exit code 4 if anything is broken. docs/privileges.md tells what
each right is for, docs/troubleshooting.md goes by symptom. --bundle writes a file for whoever is to help: the findings, versions, the
configuration without secrets, the agent's metrics and what it knows of containers, whose names and labels are in it.`,
		Example: `  sudo stoker doctor
  stoker doctor --output json
  sudo stoker doctor --bundle stoker.tar.gz    # for a report: look at what is in it before you give it away`,
		Args: noArguments,
	}
	s := a.settings(cmd)
	outputFlag(cmd, &format, "o", formatTable, formatJSON)
	cmd.Flags().StringVar(&bundle, "bundle", "", "also write a `FILE`, .tar.gz, for whoever is to help")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkFormat(format, formatTable, formatJSON); err != nil {
			return err
		}
		l, err := s.load()
		if err != nil {
			return err
		}
		rows, err := a.examine(cmd.Context(), l.Config)
		if err != nil {
			return err
		}
		if bundle != "" {
			if err := a.writeBundle(cmd.Context(), bundle, l, rows); err != nil {
				return fmt.Errorf("write the bundle: %w", err)
			}
			fmt.Fprintf(a.stderr, "wrote %s: names and labels of containers are in it, secrets are not\n", bundle)
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
func (a *app) examine(ctx context.Context, cfg config.Config) ([]doctor.Row, error) {
	process, running := agentProcess(cfg.Socket)
	checks := []doctor.Check{{Area: "agent", Name: cfg.Socket, Run: func(ctx context.Context) []doctor.Finding { return agentFinding(ctx, cfg.Socket, process, running) }}}
	checks = append(checks, doctor.Machine(process, "/proc", "/sys", sampler.MayFreeze, cfg.Sampling.UntestedKernel)...)
	checks = append(checks, doctor.Engines(engines(cfg))...)
	checks = append(checks, hookChecks()...)
	checks = append(checks, doctor.Store(cfg.Store.Path, int64(cfg.Store.MaxSize), float64(cfg.Store.MinFree), running))
	for _, e := range cfg.Pyroscope {
		client, err := pyroscope.New(endpoint(e))
		if err != nil {
			return nil, err
		}
		defer client.Close()
		checks = append(checks, doctor.Server(client))
	}
	if cfg.Web.Listen != config.Off {
		checks = append(checks, doctor.Listen(cfg.Web.Listen, running))
	}
	return doctor.Run(ctx, checks), nil
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
	sources, err := newClient(socket).Sources(ctx)
	if err != nil {
		return []doctor.Finding{{State: doctor.Broken, Detail: err.Error(), Remedy: "journalctl -u stoker"}}
	}
	out := []doctor.Finding{{State: doctor.OK, Detail: "runs as process " + process}}
	for _, s := range sources {
		if s.State != web.SourceConnected && s.State != web.SourceAbsent {
			out = append(out, doctor.Finding{Name: "source " + s.Name, State: doctor.Degraded, Detail: s.Message, Remedy: "stoker ps --sources"})
		}
	}
	return out
}

// engines are the sockets that the agent would look at.
func engines(cfg config.Config) (all []doctor.Engine) {
	add := func(name string, configured, usual []string) {
		if len(configured) == 1 && configured[0] == config.Off {
			return
		}
		for _, at := range configured {
			all = append(all, doctor.Engine{Name: name, Socket: strings.TrimPrefix(at, "unix://"), Wanted: true})
		}
		if len(configured) == 0 {
			for _, at := range usual {
				all = append(all, doctor.Engine{Name: name, Socket: at})
			}
		}
	}
	add("containerd", cfg.Runtimes.Containerd.Address, containerd.UsualAddresses())
	add("docker", cfg.Runtimes.Docker.Address, []string{docker.DefaultAddress})
	add("podman", cfg.Runtimes.Podman.Address, nil) // needs no service
	add("crio", cfg.Runtimes.CRIO.Address, []string{crio.DefaultAddress})
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
