//go:build root

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// Blocks of commands in README and docs that are marked "sh tested" do what they say, typed one after the other on a node whose
// agent runs and that has a container called shop. Only the addresses are those of the test's agent. The two commands of "Try it"
// are `make demo`, the lane demo, and `make test` itself.
func TestCommandsOfTheManual(t *testing.T) {
	a := startAgent(t, options{})
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "3"}, labels: map[string]string{"nerdctl/name": "shop"}})
	a.stored(t, b.id, "profile of the shop", func(p sink.Profile) bool { return p.Total > 0 && p.Labels["service_name"] == "shop" })

	bin := t.TempDir()
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"curl":   fmt.Sprintf("#!/bin/sh\nexec %s --fail \"$@\"\n", curl), // an answer that says what is wrong is no success
		"sudo":   "#!/bin/sh\nexec \"$@\"\n",                              // the test is root
		"stoker": fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" --config %s\n", run.stoker, a.config),
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```sh tested\n(.*?)^```$")
	n := 0
	for _, page := range append([]string{"../../README.md"}, pages...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			n++
			script := strings.NewReplacer("127.0.0.1:4041", a.listen, "/run/stoker/stoker.sock", a.socket).Replace(string(m[1]))
			cmd := exec.CommandContext(t.Context(), "bash", "-e", "-u", "-o", "pipefail", "-c", script)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) == "" {
				t.Errorf("%s: %v; the commands\n%swrote\n%s", filepath.Base(page), err, script, out)
			}
			for _, file := range regexp.MustCompile(`-s?o (\w\S+)`).FindAllStringSubmatch(script, -1) {
				if st, err := os.Stat(filepath.Join(cmd.Dir, file[1])); err != nil || st.Size() == 0 {
					t.Errorf("%s: %s was not written: %v", filepath.Base(page), file[1], err)
				}
			}
		}
	}
	if n < 2 {
		t.Errorf("%d blocks of commands were found", n)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"\nmake demo ", "\nmake test "} {
		if !strings.Contains(string(readme), command) {
			t.Errorf("the README does not say %q", strings.TrimSpace(command))
		}
	}
}
