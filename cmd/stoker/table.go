package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// Formats of --output.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
)

// outputFlag adds --output to a command whose result is a table; short is "o", or "" where -o names a file.
func outputFlag(cmd *cobra.Command, format *string, short string, allowed ...string) {
	cmd.Flags().StringVarP(format, "output", short, formatTable, "how to print the result, a `FORMAT`: "+strings.Join(allowed, ", "))
	// Completion offers exactly these.
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag was added two lines above
	}
}

func checkFormat(format string, allowed ...string) error {
	if !slices.Contains(allowed, format) {
		return usage("--output %s: choose one of %s", format, strings.Join(allowed, ", "))
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// column is one column of a table.
type column struct {
	title  string
	right  bool // numbers
	shrink bool // gives way when the terminal is too narrow
}

// table is text in columns, cut to the width of the terminal. Cells come from containers: they are cleaned of everything
// that a terminal would obey.
type table struct {
	columns []column
	rows    [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

const columnGap = 2

// print writes the table; width 0 means as wide as it gets.
func (t *table) print(w io.Writer, width int) error {
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.title)
	}
	rows := make([][]string, 0, len(t.rows))
	for _, r := range t.rows {
		row := make([]string, len(r))
		for i := range r {
			row[i] = clean(r[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
		rows = append(rows, row)
	}
	t.fit(widths, width)
	titles := make([]string, len(t.columns))
	for i, c := range t.columns {
		titles[i] = c.title
	}
	var b strings.Builder
	for _, row := range append([][]string{titles}, rows...) {
		line := ""
		for i, cell := range row {
			cell = cut(cell, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				line += strings.Repeat(" ", columnGap)
			}
			if t.columns[i].right {
				line += pad + cell
			} else {
				line += cell + pad
			}
		}
		line = strings.TrimRight(line, " ")
		if width > 0 {
			line = cut(line, width)
		}
		b.WriteString(line + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fit takes width away from the widest of the columns that may shrink until the table fits or all are at their least.
func (t *table) fit(widths []int, width int) {
	const least = 8
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; width > 0 && total > width; total-- {
		widest := -1
		for i, c := range t.columns {
			if c.shrink && widths[i] > max(least, utf8.RuneCountInString(c.title)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// cut shortens s to n characters, the last of which is then an ellipsis.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	if n < 1 {
		return ""
	}
	return string([]rune(s)[:n-1]) + "…"
}

// clean replaces control characters and broken UTF-8: a container's name must not move the cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
}

// cores renders CPU use in cores.
func cores(c float64) string { return fmt.Sprintf("%.2f", c) }
