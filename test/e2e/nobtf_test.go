//go:build root

package e2e

import (
	"strings"
	"testing"
)

// A kernel without type information cannot run CO-RE programs: the agent says so and ends with the code for it.
func TestNoBTF(t *testing.T) {
	hide := `mount -t tmpfs none /sys/kernel/btf && exec "$@"`
	a := newAgent(t, options{wrap: []string{"unshare", "-m", "--propagation", "private", "sh", "-c", hide, "sh"}})
	a.start(t)
	if code := a.wait(t); code != 4 {
		t.Errorf("exit code %d, want 4: the machine cannot do it", code)
	}
	for _, want := range []string{"BTF", "CONFIG_DEBUG_INFO_BTF"} {
		if !strings.Contains(a.log.String(), want) {
			t.Errorf("the message does not say %q:\n%s", want, a.log.String())
		}
	}
}
