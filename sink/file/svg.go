package file

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"hash/fnv"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/google/pprof/profile"
)

const (
	svgWidth    = 1200
	svgMargin   = 10
	svgRow      = 17
	svgMinWidth = 0.4  // narrower frames are left out
	svgChar     = 6.65 // the width of a character of the monospaced 11 px font
	svgMaxRows  = 400  // a picture higher than this opens nowhere
)

// svgStyle has one class per kind of frame; colours by hue are attributes of the frames, so that one rule darkens all.
const svgStyle = `
svg{background:#fff;color:#1b1f24}text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#16191d}
.t{font:600 16px system-ui,sans-serif;fill:#1b1f24}.f{font:12px system-ui,sans-serif;fill:#57606a}
rect{stroke:#fff;stroke-width:.6;rx:1.5px}.p{fill:#d8dde3}g:hover>rect{stroke:#000;stroke-width:1}
@media(prefers-color-scheme:dark){svg{background:#0d1117}.t{fill:#e6edf3}.f{fill:#9198a1}rect{stroke:#0d1117;filter:brightness(.62) saturate(.9)}
text{fill:#f2f5f8}g:hover>rect{stroke:#fff}}
`

// writeSVG writes a still flame graph, the root at the top; each frame tells its numbers as a tool tip. It has no script.
func writeSVG(w io.Writer, p *profile.Profile, opts Options) error {
	root, err := Build(p, opts.SampleIndex, opts.MaxNodes)
	if err != nil {
		return err
	}
	var head []string
	for _, f := range append(append([]Fact{}, opts.Facts...), summary(p, opts.SampleIndex)...) {
		head = append(head, f.Name+": "+f.Value)
	}
	lines := wrap(head, " · ", 190)
	lines = append(lines, opts.Notes...)
	title := opts.Title
	if title == "" {
		title = "stoker: " + p.SampleType[opts.SampleIndex].Type
	}
	top := 34 + 17*len(lines)
	unit := p.SampleType[opts.SampleIndex].Unit
	rows := min(shownDepth(root, float64(svgWidth-2*svgMargin), root.Total), svgMaxRows)
	height := top + rows*svgRow + svgMargin

	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+
		`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n<style>%s</style>\n", svgWidth, height, svgWidth, height, svgStyle)
	fmt.Fprintf(b, `<text class="t" x="%d" y="22">%s</text>`+"\n", svgMargin, escape(fit(clean(title), 130)))
	for i, l := range lines {
		fmt.Fprintf(b, `<text class="f" x="%d" y="%d">%s</text>`+"\n", svgMargin, 40+17*i, escape(fit(clean(l), 200)))
	}
	d := svgDrawer{b: b, unit: unit, total: root.Total, top: top}
	if root.Total > 0 {
		d.draw(root, svgMargin, float64(svgWidth-2*svgMargin)/float64(root.Total), 0)
	}
	fmt.Fprintln(b, "</svg>")
	return b.Flush()
}

// shownDepth is how many rows have a frame wide enough to draw.
func shownDepth(t *Tree, width float64, total int64) int {
	if total == 0 || float64(t.Total)/float64(total)*width < svgMinWidth {
		return 0
	}
	d := 0
	for _, c := range t.Children {
		d = max(d, shownDepth(c, width, total))
	}
	return d + 1
}

type svgDrawer struct {
	b     *bufio.Writer
	unit  string
	total int64
	top   int
}

func (d *svgDrawer) draw(t *Tree, x, scale float64, depth int) {
	width := float64(t.Total) * scale
	if width < svgMinWidth || depth >= svgMaxRows {
		return
	}
	y := d.top + depth*svgRow
	name := clean(t.Name)
	fmt.Fprintf(d.b, `<g><title>%s&#10;total %s (%s), self %s (%s)`, escape(fit(name, 400)), FormatValue(t.Total, d.unit), FormatShare(t.Total, d.total),
		FormatValue(t.Self, d.unit), FormatShare(t.Self, d.total))
	if t.Module != "" {
		fmt.Fprintf(d.b, `&#10;%s`, escape(fit(clean(t.Module), 400)))
	}
	fmt.Fprintf(d.b, `</title><rect x="%.1f" y="%d" width="%.1f" height="%d" %s/>`, x, y, width, svgRow-1, fill(t, depth))
	if n := int((width - 6) / svgChar); n >= 3 {
		fmt.Fprintf(d.b, `<text x="%.1f" y="%d">%s</text>`, x+3, y+12, escape(fitEnd(name, n)))
	}
	d.b.WriteString("</g>\n")
	for _, c := range t.Children {
		d.draw(c, x, scale, depth+1)
		x += float64(c.Total) * scale
	}
}

// fitEnd shortens s at its end, as a browser does with text that is too long.
func fitEnd(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

func fill(t *Tree, depth int) string {
	switch {
	case depth == 0 || t.Other:
		return `class="p"`
	case isKernel(t.Module):
		return fmt.Sprintf(`fill="hsl(218,12%%,%d%%)"`, 74+hash(t.Name)%7)
	}
	return fmt.Sprintf(`fill="hsl(%d,62%%,%d%%)"`, hash(packageOf(t))%360, 74+hash(t.Name)%9)
}

func hash(s string) uint32 {
	h := fnv.New32a()
	io.WriteString(h, s) // hash.Hash never returns an error
	x := h.Sum32()
	x ^= x >> 15 // the low bits of short strings are much alike
	return x * 2246822519
}

var notKernel = map[string]bool{"[unmapped]": true, "[vdso]": true, "[vsyscall]": true, "[heap]": true, "[stack]": true, "[anon]": true, "[jit]": true}

// isKernel says whether a mapping is the kernel's or one of its modules.
func isKernel(module string) bool { return strings.HasPrefix(module, "[") && !notKernel[module] }

var (
	goPackage = regexp.MustCompile(`^((?:[\w.~%-]+/)*)([a-z_]\w*)\.[\w(]`)
	scope     = regexp.MustCompile(`^<?&?(?:mut |dyn )?([A-Za-z_]\w*)::`)
)

// packageOf is what gives a frame its colour: Go's package, the first namespace of C++ and Rust, else the file.
func packageOf(t *Tree) string {
	if m := goPackage.FindStringSubmatch(t.Name); m != nil {
		return m[1] + m[2]
	}
	if m := scope.FindStringSubmatch(t.Name); m != nil {
		return m[1]
	}
	if t.Module != "" {
		return t.Module
	}
	return t.Name
}

// wrap joins parts into lines of at most width characters where parts allow it.
func wrap(parts []string, separator string, width int) (lines []string) {
	for _, p := range parts {
		if n := len(lines); n > 0 && utf8.RuneCountInString(lines[n-1]+separator+p) <= width {
			lines[n-1] += separator + p
		} else {
			lines = append(lines, p)
		}
	}
	return lines
}

func escape(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return "" // a strings.Builder takes everything
	}
	return b.String()
}
