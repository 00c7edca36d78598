package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
)

// manCommand writes the manual pages. It is for those who build packages, so the help does not list it.
//
// The pages are written as roff right here: cobra's own generator takes the texts for Markdown, which joins the lines of their
// tables, and knows no names for the values of flags.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the manual pages",
		Long:    "Write a manual page for each command and one for the configuration file into a directory. Their date is $SOURCE_DATE_EPOCH.",
		Example: "  stoker man /usr/local/share/man/man1",
		Hidden:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage("man takes one directory, but got %q", args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			date := time.Now()
			if text := a.getenv("SOURCE_DATE_EPOCH"); text != "" {
				seconds, err := strconv.ParseInt(text, 10, 64)
				if err != nil {
					return usage("SOURCE_DATE_EPOCH=%s is not a number of seconds", text)
				}
				date = time.Unix(seconds, 0)
			}
			for name, text := range a.manual(cmd.Root(), date.UTC()) {
				if err := os.WriteFile(filepath.Join(args[0], name), []byte(text), 0o644); err != nil {
					return fmt.Errorf("write a manual page: %w", err)
				}
			}
			return nil
		},
	}
}

// manual makes all pages: file name → roff.
func (a *app) manual(root *cobra.Command, date time.Time) map[string]string {
	pages := map[string]string{}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		pages[manName(c)+".1"] = a.manPage(c, date)
		for _, sub := range c.Commands() {
			if documented(sub) {
				visit(sub)
			}
		}
	}
	visit(root)
	p := a.newPage("stoker.yaml", "5", "configuration of the stoker agent", date)
	p.section("DESCRIPTION")
	p.text("The agent reads " + config.DefaultFile + " if it exists. All keys are optional; an unknown one is an error. Each has a flag of stoker run " +
		"and an environment variable, too: sampling.frequency is --sampling-frequency and STOKER_SAMPLING_FREQUENCY. " +
		"A flag wins over the environment, that over the file.")
	p.section("KEYS")
	p.verbatim(config.Example())
	p.section("SEE ALSO")
	p.text("stoker-run(1), stoker-config(1)")
	pages["stoker.yaml.5"] = p.String()
	return pages
}

// documented: completion is explained by its help; packages install what it prints.
func documented(c *cobra.Command) bool { return c.IsAvailableCommand() && c.Name() != "completion" }

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func (a *app) manPage(c *cobra.Command, date time.Time) string {
	p := a.newPage(manName(c), "1", c.Short, date)
	p.section("SYNOPSIS")
	p.text(c.UseLine())
	p.section("DESCRIPTION")
	p.text(c.Long)
	if c.HasAvailableSubCommands() {
		p.section("COMMANDS")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				p.item(sub.Name(), sub.Short)
			}
		}
	}
	c.InitDefaultHelpFlag()
	if c.HasAvailableLocalFlags() {
		p.section("OPTIONS")
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			value, help := pflag.UnquoteUsage(f)
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand + ", " + name
			}
			if f.NoOptDefVal != "" && value != "" {
				name += "[=" + value + "]"
			} else if value != "" {
				name += " " + value
			}
			if !slices.Contains([]string{"", "false", "0", "0s", "[]"}, f.DefValue) {
				help += " (default " + f.DefValue + ")"
			}
			p.item(name, help)
		})
	}
	if c.Example != "" {
		p.section("EXAMPLES")
		p.verbatim(c.Example)
	}
	p.section("EXIT STATUS")
	p.text("0 done, 1 failed, 2 wrong use, 3 no such target, 4 the machine cannot do it; the message says what would help.")
	p.section("SEE ALSO")
	var also []string
	if c.HasParent() {
		also = append(also, manName(c.Parent())+"(1)")
	}
	for _, sub := range c.Commands() {
		if documented(sub) {
			also = append(also, manName(sub)+"(1)")
		}
	}
	p.text(strings.Join(append(also, "stoker.yaml(5)"), ", "))
	return p.String()
}

// page writes roff with the macros of man(7).
type page struct{ strings.Builder }

func (a *app) newPage(name, section, short string, date time.Time) *page {
	p := new(page)
	fmt.Fprintf(p, ".TH %q %q %q %q %q\n", roff(strings.ToUpper(name)), section, date.Format(time.DateOnly), "stoker "+a.version, "stoker")
	p.section("NAME")
	fmt.Fprintf(p, "%s \\- %s\n", roff(name), roff(short))
	return p
}

func (p *page) section(title string) { fmt.Fprintf(p, ".SH %s\n", title) }

func (p *page) item(term, text string) {
	fmt.Fprintf(p, ".TP\n\\fB%s\\fR\n%s\n", roff(term), roffLine(text))
}

// text writes paragraphs; indented lines stay as they are.
func (p *page) text(text string) {
	indented := false
	for _, line := range strings.Split(text, "\n") {
		switch in := strings.HasPrefix(line, "  "); {
		case line == "" && !indented:
			p.WriteString(".PP\n")
			continue
		case in && !indented:
			p.WriteString(".PP\n.nf\n")
			indented = true
		case !in && line != "" && indented:
			p.WriteString(".fi\n.PP\n")
			indented = false
		}
		p.WriteString(roffLine(line) + "\n")
	}
	if indented {
		p.WriteString(".fi\n")
	}
}

// verbatim writes lines as they are.
func (p *page) verbatim(text string) {
	p.WriteString(".nf\n")
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		p.WriteString(roffLine(line) + "\n")
	}
	p.WriteString(".fi\n")
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", `\[u2026]`, "→", `\[->]`, `"`, `\[dq]`)

// roff escapes text inside a line.
func roff(text string) string { return roffEscapes.Replace(text) }

// roffLine escapes a whole line, whose first letter could make it a request.
func roffLine(line string) string {
	text := roff(line)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		return `\&` + text
	}
	return text
}
