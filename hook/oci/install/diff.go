package install

import (
	"fmt"
	"strings"
)

// contextLines is how many lines are shown around what differs.
const contextLines = 3

// Diff shows a change as a unified diff of one hunk; a file that is made or goes is shown whole.
func (ch Change) Diff() string {
	from, to := ch.Path, ch.Path
	if ch.Old == nil {
		from = "/dev/null"
	}
	if ch.New == nil {
		to = "/dev/null"
	}
	a, b := lines(ch.Old), lines(ch.New)
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	first, after := max(0, head-contextLines), min(tail, contextLines)
	var out strings.Builder
	span := func(n int) string {
		if n == 0 {
			return fmt.Sprintf("%d,0", first)
		}
		return fmt.Sprintf("%d,%d", first+1, n)
	}
	fmt.Fprintf(&out, "--- %s\n+++ %s\n@@ -%s +%s @@\n", from, to, span(len(a)-tail+after-first), span(len(b)-tail+after-first))
	print := func(mark string, list []string) {
		for _, l := range list {
			out.WriteString(mark + l + "\n")
		}
	}
	print(" ", a[first:head])
	print("-", a[head:len(a)-tail])
	print("+", b[head:len(b)-tail])
	print(" ", a[len(a)-tail:len(a)-tail+after])
	return out.String()
}

func lines(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}
