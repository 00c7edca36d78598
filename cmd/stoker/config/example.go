package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// exampleHead is the beginning of Example.
const exampleHead = `# stoker's configuration: every key with its default and its meaning. Remove the # in front of a line, and of the line of the
# group it belongs to, to change a value. "stoker config check" finds mistakes, "stoker config show" tells what is in force;
# after a change: systemctl reload stoker. Keys marked "restart" need: systemctl restart stoker.
# Everybody on this machine may read this file: secrets belong in files of their own, which the keys that end in _file name.
`

// Example writes the default configuration as a file in which every line is a comment. Without the first # of each line below its
// head it is a configuration that says what [Default] says.
func Example() string {
	var b strings.Builder
	b.WriteString(exampleHead)
	example(&b, reflect.ValueOf(Default()), 0)
	return b.String()
}

// exampleWidth is how long a line of prose may be.
const exampleWidth = 110

// example writes the fields of struct v.
func example(b *strings.Builder, v reflect.Value, depth int) {
	line := func(text string) { fmt.Fprintf(b, "#%s%s\n", strings.Repeat("  ", depth), text) }
	for i := range v.NumField() {
		field, tag := v.Field(i), v.Type().Field(i).Tag
		key, help := tag.Get("yaml"), tag.Get("help")
		if tag.Get("live") != "true" {
			help += " (restart)"
		}
		if depth == 0 {
			b.WriteString("\n")
		}
		if field.Kind() == reflect.Struct {
			line(key + ":")
			example(b, field, depth+1)
			continue
		}
		for _, l := range fold(help, exampleWidth) {
			line("# " + l)
		}
		line(key + ": " + exampleValue(field))
		switch field.Type() {
		case endpoints:
			exampleEntry(b, reflect.ValueOf(DefaultEndpoint()), "#   - ")
		case reflect.TypeFor[[]Rule]():
			exampleEntry(b, reflect.ValueOf(Rule{}), "#   - ")
		}
	}
}

// exampleEntry writes an entry of a list with all its keys. It is a comment in the example's configuration too: by default there is
// none.
func exampleEntry(b *strings.Builder, v reflect.Value, lead string) {
	for i := range v.NumField() {
		field, tag := v.Field(i), v.Type().Field(i).Tag
		if i == 1 {
			lead = strings.Replace(lead, "-", " ", 1)
		}
		if field.Kind() == reflect.Struct {
			fmt.Fprintf(b, "#%s%s:\n", lead, tag.Get("yaml"))
			exampleEntry(b, field, lead+"  ")
			continue
		}
		fmt.Fprintf(b, "#%s%-36s # %s\n", lead, tag.Get("yaml")+": "+exampleValue(field), tag.Get("help"))
	}
}

// exampleValue writes a value as the file would.
func exampleValue(v reflect.Value) string {
	switch v.Interface().(type) {
	case time.Duration, Bytes, Percent:
		return render(v)
	case string:
		return scalar(v.String())
	}
	return flow(v)
}

// fold breaks a text into lines of at most width bytes, where it has words that short.
func fold(text string, width int) (lines []string) {
	for _, word := range strings.Fields(text) {
		if n := len(lines); n > 0 && len(lines[n-1])+1+len(word) <= width {
			lines[n-1] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}
