package main

import (
	"strings"
	"testing"
)

func TestHookCommandsSayWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"hook install", exitUsage, "say which engine with --runtime: podman, crio, containerd"},
		{"hook install --runtime docker", exitUsage, "choose one of podman, crio, containerd"},
		{"hook install --runtime containerd --hooks-dir /x", exitUsage, "containerd has no hooks directory"},
		{"hook install --runtime podman --runtimes-hook-socket off", exitUsage, "would not listen"},
		{"hook install --runtime podman --binary /nonexistent/stoker-hook", exitMachine, "install -D -o root -m 755 stoker-hook /usr/libexec/stoker/stoker-hook"},
		{"hook install --runtime podman -o xml", exitUsage, "choose one of table, json"},
		{"hook uninstall --runtime podman --hooks-dir rel", exitFailed, "no full path"},
		{"hook uninstal", exitUsage, "did you mean `stoker hook uninstall`"},
	} {
		var out, errs strings.Builder
		a := &app{stdout: &out, stderr: &errs, environ: []string{"STOKER_CONFIG="}}
		if code := a.execute(t.Context(), strings.Fields(c.args)); code != c.code || !strings.Contains(errs.String(), c.want) {
			t.Errorf("stoker %s: exit code %d, want %d; %q, want %q", c.args, code, c.code, errs.String(), c.want)
		}
	}
}

// A package's script runs it, with whatever configuration there is.
func TestTheHookIsTakenAwayWhereThereIsNoneAndTheConfigurationIsBroken(t *testing.T) {
	var out, errs strings.Builder
	a := &app{stdout: &out, stderr: &errs, environ: []string{"STOKER_SAMPLING_FREQUENCY=nonsense"}}
	if code := a.execute(t.Context(), []string{"hook", "uninstall", "--runtime", "podman", "--hooks-dir", t.TempDir()}); code != exitDone || out.String() != "podman: nothing to change\n" {
		t.Errorf("exit code %d, %q %q", code, out.String(), errs.String())
	}
}
