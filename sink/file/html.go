package file

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"path"

	"github.com/google/pprof/profile"
)

var (
	//go:embed assets/flamegraph.js
	flamegraphJS string
	//go:embed assets/flamegraph.css
	flamegraphCSS string
	//go:embed assets/report.js
	reportJS string
	//go:embed assets/report.css
	reportCSS string
)

// reportData is what report.js reads out of the page.
type reportData struct {
	Unit string `json:"unit"`
	Diff bool   `json:"diff"`
	Tree *Tree  `json:"tree"`
}

const tableRows = 200

// writeHTML writes a page that needs no network and may not use any: its policy allows the two scripts by their hash and
// nothing else, so that a function's name could not run as code even if it got past the escaping.
func writeHTML(w io.Writer, p *profile.Profile, opts Options) error {
	st := p.SampleType[opts.SampleIndex]
	data := reportData{Unit: st.Unit, Diff: opts.Base != nil}
	var err error
	if opts.Base != nil {
		data.Tree, err = BuildDiff(opts.Base, p, opts.SampleIndex, opts.MaxNodes)
	} else {
		data.Tree, err = Build(p, opts.SampleIndex, opts.MaxNodes)
	}
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(data) // <, > and & become \u003c…: it cannot end its element
	if err != nil {
		return fmt.Errorf("encode flame graph: %w", err)
	}
	title := clean(cmp.Or(opts.Title, "stoker: "+st.Type))
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src %s %s; style-src %s; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="stoker">
<title>%s</title>
<style>%s</style>
</head>
<body>
<header>
<h1>%s</h1>
<dl>
`, policyHash(flamegraphJS), policyHash(reportJS), policyHash(flamegraphCSS+reportCSS), html.EscapeString(title), flamegraphCSS+reportCSS, html.EscapeString(title))
	fact := func(f Fact) {
		fmt.Fprintf(b, "<div><dt>%s</dt><dd>%s</dd></div>\n", html.EscapeString(clean(f.Name)), html.EscapeString(clean(f.Value)))
	}
	for _, f := range opts.Facts {
		fact(f)
	}
	if opts.Base != nil {
		for _, f := range summary(opts.Base, opts.SampleIndex) {
			fact(Fact{"base " + f.Name, f.Value})
		}
	}
	for _, f := range summary(p, opts.SampleIndex) {
		fact(f)
	}
	b.WriteString("</dl>\n")
	for _, n := range opts.Notes {
		fmt.Fprintf(b, "<p class=\"note\">%s</p>\n", html.EscapeString(clean(n)))
	}
	b.WriteString("</header>\n<main>\n<noscript><p class=\"note\">The flame graph needs JavaScript; the table below does not.</p></noscript>\n<section id=\"graph\"></section>\n")
	if opts.Base == nil {
		writeTable(b, p, opts)
	}
	fmt.Fprintf(b, "</main>\n<script type=\"application/json\" id=\"data\">%s</script>\n<script>%s</script>\n<script>%s</script>\n</body>\n</html>\n", encoded, flamegraphJS, reportJS)
	return b.Flush()
}

func writeTable(b *bufio.Writer, p *profile.Profile, opts Options) {
	unit := p.SampleType[opts.SampleIndex].Unit
	functions, total := Top(p, opts.SampleIndex)
	rows := min(len(functions), cmp.Or(opts.Rows, tableRows))
	fmt.Fprintf(b, "<section class=\"functions\">\n<h2>Functions</h2>\n")
	if rows < len(functions) {
		fmt.Fprintf(b, "<p class=\"note\">The %d heaviest of %d by their own code.</p>\n", rows, len(functions))
	}
	b.WriteString("<div class=\"scroll\"><table id=\"top\">\n<thead><tr><th class=\"n\" aria-sort=\"descending\"><button type=\"button\">Self</button></th>" +
		"<th class=\"n\"><button type=\"button\">Total</button></th><th><button type=\"button\">Function</button></th></tr></thead>\n<tbody>\n")
	for _, f := range functions[:rows] {
		module := ""
		if f.Module != "" {
			module = "<small>" + html.EscapeString(clean(path.Base(f.Module))) + "</small>"
		}
		fmt.Fprintf(b, `<tr><td class="n" data-v="%d">%s <small>%s</small></td><td class="n" data-v="%d">%s <small>%s</small></td><td><button type="button" class="fn">%s</button>%s</td></tr>`+"\n",
			f.Flat, html.EscapeString(FormatValue(f.Flat, unit)), html.EscapeString(FormatShare(f.Flat, total)),
			f.Cum, html.EscapeString(FormatValue(f.Cum, unit)), html.EscapeString(FormatShare(f.Cum, total)), html.EscapeString(clean(f.Name)), module)
	}
	b.WriteString("</tbody>\n</table></div>\n</section>\n")
}

// policyHash is how a Content-Security-Policy names an inline script or style.
func policyHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
