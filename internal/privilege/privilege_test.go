package privilege

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the table of docs/privileges.md anew")

func TestMissing(t *testing.T) {
	var all Set
	for _, c := range Table {
		all |= 1 << c.Bit
	}
	if m := all.Missing(); len(m) != 0 {
		t.Errorf("all are there, and %v are missing", m)
	}
	for _, c := range Table {
		if m := (all &^ (1 << c.Bit)).Missing(); len(m) != 1 || m[0].Name != c.Name {
			t.Errorf("without %s %v are missing", c.Name, m)
		}
	}
	if m := Set(1 << unix.CAP_SYS_ADMIN).Missing(); len(m) != 3 || m[0].Name != "CAP_SYS_PTRACE" || m[1].Name != "CAP_DAC_READ_SEARCH" || m[2].Name != "CAP_SYSLOG" {
		t.Errorf("CAP_SYS_ADMIN lacks %v", m)
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Set{"Name:\tx\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n": 0x1ffffffffff, "Name:\tx\nCapEff:\t0": 0} {
		if got, err := parse(text); err != nil || got != want {
			t.Errorf("%q: %x, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "Name:\tx\n", "\nCapEff:\tzz\n"} {
		if _, err := parse(text); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
	if _, err := Of("self"); err != nil {
		t.Error(err)
	}
}

func TestRightsInAUserNamespaceAreNone(t *testing.T) {
	for ids, want := range map[string]bool{"         0          0 4294967295\n": true, "0 1000 1\n": false, "": false, "0 0 65536\n65536 100000 65536\n": false} {
		if got := whole(ids); got != want {
			t.Errorf("%q: %t", ids, got)
		}
	}
}

// The package's unit gives these and no others.
func TestTheUnitHasTheTable(t *testing.T) {
	unit, err := os.ReadFile("../../packaging/systemd/stoker.service")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range Table {
		names = append(names, c.Name)
	}
	if want := "\nCapabilityBoundingSet=" + strings.Join(names, " ") + "\n"; !strings.Contains(string(unit), want) {
		t.Errorf("the unit has no line %q", want)
	}
}

// The manual has the table as it is here.
func TestTheManualHasTheTable(t *testing.T) {
	const path = "../../docs/privileges.md"
	var table strings.Builder
	table.WriteString("| capability | what for | without it |\n|---|---|---|\n")
	for _, c := range Table {
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", c.Name, c.Why, c.Lost)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "<!-- table: ")
	note, rest, ok2 := strings.Cut(rest, "\n")
	_, after, ok3 := strings.Cut(rest, "<!-- /table -->")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := before + "<!-- table: " + note + "\n" + table.String() + "<!-- /table -->" + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("%s differs; run with -update and look at the difference", path)
	}
}
