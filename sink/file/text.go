package file

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/pprof/profile"
)

// writeText writes a table like that of `pprof -top`. Its columns fit opts.Width, the function's name being shortened.
func writeText(w io.Writer, p *profile.Profile, opts Options) error {
	b := bufio.NewWriter(w)
	if opts.Title != "" {
		fmt.Fprintln(b, fit(clean(opts.Title), opts.Width))
	}
	for _, f := range append(slices.Clone(opts.Facts), summary(p, opts.SampleIndex)...) {
		fmt.Fprintln(b, fit(clean(f.Name)+": "+clean(f.Value), opts.Width))
	}
	functions, total := Top(p, opts.SampleIndex)
	rows := len(functions)
	if opts.Rows > 0 {
		rows = min(rows, opts.Rows)
	}
	if rows < len(functions) {
		var shown int64
		for _, f := range functions[:rows] {
			shown += f.Flat
		}
		fmt.Fprintln(b, fit(fmt.Sprintf("showing %d of %d functions, %s of the total", rows, len(functions), FormatShare(shown, total)), opts.Width))
	}
	unit := p.SampleType[opts.SampleIndex].Unit
	fmt.Fprintf(b, "%10s %7s %10s %7s  %s\n", "flat", "flat%", "cum", "cum%", "function")
	const columns = 10 + 1 + 7 + 1 + 10 + 1 + 7 + 2
	for _, f := range functions[:rows] {
		name := clean(f.Name)
		if f.Module != "" && !strings.Contains(name, "!0x") {
			name += " " + bracketed(clean(path.Base(f.Module)))
		}
		if opts.Width > 0 {
			name = fit(name, max(opts.Width-columns, 12))
		}
		fmt.Fprintf(b, "%10s %7s %10s %7s  %s\n", FormatValue(f.Flat, unit), FormatShare(f.Flat, total), FormatValue(f.Cum, unit),
			FormatShare(f.Cum, total), name)
	}
	for _, n := range opts.Notes {
		fmt.Fprintln(b, fit(clean(n), opts.Width))
	}
	return b.Flush()
}

// bracketed puts a file's base name in brackets, unless it is one of the kernel's names that have them.
func bracketed(base string) string {
	if strings.HasPrefix(base, "[") {
		return base
	}
	return "[" + base + "]"
}

// fit shortens s to width characters: what comes last, a method's name, matters more than the middle.
func fit(s string, width int) string {
	n := utf8.RuneCountInString(s)
	if width <= 0 || n <= width {
		return s
	}
	if width < 3 {
		return string([]rune(s)[:width])
	}
	r := []rune(s)
	head := (width - 1) / 2
	return string(r[:head]) + "…" + string(r[n-(width-1-head):])
}

// foldedText keeps a name from ending its frame or its line. The tools that read folded stacks know no escapes, so the
// characters that mean something are replaced, as stackcollapse's scripts do.
var foldedText = strings.NewReplacer(";", ":", "\n", " ", "\r", " ", "\t", " ")

// writeFolded writes one line per stack, sorted: "root;…;leaf value".
func writeFolded(w io.Writer, p *profile.Profile, opts Options) error {
	lines := map[string]int64{}
	var b strings.Builder
	for _, s := range p.Sample {
		if opts.SampleIndex >= len(s.Value) || s.Value[opts.SampleIndex] <= 0 {
			continue
		}
		b.Reset()
		for f := range frames(s) {
			if b.Len() > 0 {
				b.WriteByte(';')
			}
			b.WriteString(clean(foldedText.Replace(f.name)))
		}
		if b.Len() == 0 {
			b.WriteString(RootName)
		}
		lines[b.String()] += s.Value[opts.SampleIndex]
	}
	stacks := make([]string, 0, len(lines))
	for s := range lines {
		stacks = append(stacks, s)
	}
	slices.Sort(stacks)
	out := bufio.NewWriter(w)
	for _, s := range stacks {
		fmt.Fprintf(out, "%s %d\n", s, lines[s])
	}
	return out.Flush()
}
