package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/relabel"
	"go.yaml.in/yaml/v3"
)

const (
	// maxFileBytes bounds the configuration file: the largest sensible one, thousands of relabel rules, is a tenth of it.
	maxFileBytes = 1 << 20
	// maxNodes bounds what aliases may expand to.
	maxNodes = 100_000
)

// decoder walks the nodes of one file into a Config. It goes on after a mistake, so that all are reported at once.
type decoder struct {
	file     string
	problems Problems
	where    map[string]string // path of a key that the file sets → "file:line:column"
	nodes    int
}

// decode reads the YAML text data into c.
func (d *decoder) decode(c *Config, data []byte) {
	reader := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := reader.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) { // an empty file is a valid configuration
			d.yamlError("", nil, err)
		}
		return
	}
	var second yaml.Node
	if err := reader.Decode(&second); err == nil {
		d.fail(&second, "", "a second YAML document; the configuration is one document, remove the line ---")
	} else if !errors.Is(err, io.EOF) {
		d.yamlError("", nil, err)
	}
	for _, root := range doc.Content {
		if root = resolve(root); !isNull(root) {
			d.group(reflect.ValueOf(c).Elem(), root, "")
		}
	}
}

func (d *decoder) at(n *yaml.Node) string {
	if n == nil {
		return d.file
	}
	return fmt.Sprintf("%s:%d:%d", d.file, n.Line, n.Column)
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.problems.add(d.at(n), path, format, args...)
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)

// yamlError reports an error of the YAML library, which knows the line but not the column. n is where we were, if the error
// does not say better.
func (d *decoder) yamlError(path string, n *yaml.Node, err error) {
	messages := []string{err.Error()}
	if typed := (*yaml.TypeError)(nil); errors.As(err, &typed) {
		messages = typed.Errors
	}
	for _, m := range messages {
		where := d.at(n)
		if found := yamlLine.FindStringSubmatch(m); found != nil {
			where, m = d.file+":"+found[1], found[2]
		}
		d.problems.add(where, path, "%s", strings.TrimPrefix(m, "yaml: "))
	}
}

// resolve follows an alias. The YAML library refuses an alias of an alias, so one step is enough.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// kindName says what a node is, in words.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a group of keys"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// tooMany counts nodes and says, once, that aliases blow the document up.
func (d *decoder) tooMany(n *yaml.Node) bool {
	if d.nodes++; d.nodes == maxNodes {
		d.fail(n, "", "more than %d values; stoker's configuration is never that large", maxNodes)
	}
	return d.nodes >= maxNodes
}

// group reads a mapping into the struct v.
func (d *decoder) group(v reflect.Value, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		what := "the file holds keys and their values"
		if path != "" {
			what = "this is a group of keys (" + strings.Join(fieldKeys(v.Type()), ", ") + ")"
		}
		d.fail(n, path, "%s, not %s", what, kindName(n))
		return
	}
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], resolve(n.Content[i+1])
		if d.tooMany(key) {
			return
		}
		at := join(path, key.Value)
		field, ok := fieldOf(v, key.Value)
		if key.Kind != yaml.ScalarNode || !ok {
			d.unknown(key, v.Type(), path)
			continue
		}
		if first := seen[key.Value]; first != nil {
			d.fail(key, at, "the key is there twice, first in line %d; keep one", first.Line)
			continue
		}
		seen[key.Value] = key
		if isNull(value) {
			continue // "store:" with nothing behind it says nothing
		}
		// The position of a value, not of its key, is where the eye has to go; an alias stands where it is used.
		d.where[at] = d.at(n.Content[i+1])
		d.value(field, value, at)
	}
}

func (d *decoder) value(v reflect.Value, n *yaml.Node, path string) {
	switch {
	case v.Type() == mapType:
		d.stringMap(v, n, path)
	case v.Type() == stringsType:
		d.stringList(v, n, path)
	case v.Type() == relabelType:
		d.relabelRules(v, n, path)
	case v.Kind() == reflect.Struct:
		d.group(v, n, path)
	case v.Kind() == reflect.Slice:
		d.groupList(v, n, path)
	default:
		if n.Kind != yaml.ScalarNode {
			d.fail(n, path, "this is a single value (%s), not %s", formOf(v.Type()), kindName(n))
		} else if err := setScalar(v, n.Value); err != nil {
			d.fail(n, path, "%v", err)
		}
	}
}

func (d *decoder) stringMap(v reflect.Value, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "this is a group of names and values, not %s", kindName(n))
		return
	}
	m := map[string]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], resolve(n.Content[i+1])
		if d.tooMany(key) {
			return
		}
		switch _, twice := m[key.Value]; {
		case key.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode:
			d.fail(n.Content[i+1], join(path, key.Value), "a name and a value are text, not %s", kindName(value))
		case twice:
			d.fail(key, join(path, key.Value), "the name is there twice; keep one")
		case isNull(value):
			m[key.Value] = ""
		default:
			m[key.Value] = value.Value
		}
		d.where[join(path, key.Value)] = d.at(n.Content[i+1])
	}
	v.Set(reflect.ValueOf(m))
}

func (d *decoder) stringList(v reflect.Value, n *yaml.Node, path string) {
	if n.Kind == yaml.ScalarNode {
		v.Set(reflect.ValueOf([]string{n.Value}))
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "this is a value or a list of values, not %s", kindName(n))
		return
	}
	list := []string{}
	for i, item := range n.Content {
		at := elementPath(path, i, len(n.Content))
		d.where[at] = d.at(item)
		if item = resolve(item); d.tooMany(item) {
			return
		}
		if item.Kind != yaml.ScalarNode || isNull(item) {
			d.fail(item, at, "an entry of this list is a single value, not %s", kindName(item))
			continue
		}
		list = append(list, item.Value)
	}
	v.Set(reflect.ValueOf(list))
}

// groupList reads a list of groups; a single group stands for a list of one.
func (d *decoder) groupList(v reflect.Value, n *yaml.Node, path string) {
	items := n.Content
	switch n.Kind {
	case yaml.SequenceNode:
	case yaml.MappingNode:
		items = []*yaml.Node{n}
	default:
		d.fail(n, path, "this is a list of groups of keys, not %s", kindName(n))
		return
	}
	list := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		at := elementPath(path, i, len(items))
		d.where[at] = d.at(item)
		if d.tooMany(item) {
			return
		}
		if v.Type() == endpoints {
			list.Index(i).Set(reflect.ValueOf(DefaultEndpoint()))
		}
		d.group(list.Index(i), resolve(item), at)
	}
	v.Set(list)
}

// relabelRules leaves the values of a rule to Prometheus' own type, but not the names of its keys: the library ignores the
// ones it does not know.
func (d *decoder) relabelRules(v reflect.Value, n *yaml.Node, path string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "this is a list of Prometheus relabeling rules, not %s", kindName(n))
		return
	}
	rules := make([]*relabel.Config, len(n.Content))
	for i := range rules {
		rules[i] = new(relabel.Config) // stays where a rule cannot be read, so that the others keep their numbers
	}
	defer func() { v.Set(reflect.ValueOf(rules)) }()
	for i, item := range n.Content {
		at := elementPath(path, i, len(n.Content))
		d.where[at] = d.at(item)
		if item = resolve(item); d.tooMany(item) {
			return
		}
		if item.Kind != yaml.MappingNode {
			d.fail(item, at, "a relabeling rule is a group of keys, not %s", kindName(item))
			continue
		}
		before := len(d.problems)
		for k := 0; k+1 < len(item.Content); k += 2 {
			if key := item.Content[k]; !slices.Contains(fieldKeys(reflect.TypeFor[relabel.Config]()), key.Value) {
				d.unknown(key, reflect.TypeFor[relabel.Config](), at)
			}
		}
		if len(d.problems) > before {
			continue
		}
		if err := item.Decode(rules[i]); err != nil {
			d.yamlError(at, item, err)
		}
	}
}

// unknown reports a key that t does not have, with the nearest one that exists.
func (d *decoder) unknown(key *yaml.Node, t reflect.Type, path string) {
	if key.Kind != yaml.ScalarNode {
		d.fail(key, path, "a key is text, not %s", kindName(key))
		return
	}
	at := join(path, key.Value)
	if what, ok := notYet[schemaPath(at)]; ok {
		d.fail(key, at, "not supported yet: this version has no code for %s; remove the key", what)
		return
	}
	if instead, ok := inlineSecrets[schemaPath(at)]; ok {
		d.fail(key, at, "secrets come from files: put it into a file that only the agent can read and name that in %s", instead)
		return
	}
	d.fail(key, at, "unknown key; %s", nearest(key.Value, fieldKeys(t)))
}

// nearest says which known key was probably meant.
func nearest(word string, siblings []string) string {
	best := slices.MinFunc(siblings, func(a, b string) int { return distance(word, a) - distance(word, b) })
	if distance(word, best) <= max(2, len(best)/3) {
		return fmt.Sprintf("did you mean %q?", best)
	}
	// The right word in the wrong place, "frequency" at the top, is the other common slip.
	for _, k := range Keys() {
		if last := k.Path[strings.LastIndexByte(k.Path, '.')+1:]; last == word {
			return fmt.Sprintf("did you mean %q?", k.Path)
		}
	}
	return fmt.Sprintf("the nearest known key is %q, all that go here are %s", best, strings.Join(siblings, ", "))
}

// distance is the number of letters to change, add, drop or swap between a and b (optimal string alignment). Words longer
// than any key are cut: they are far from everything anyway.
func distance(a, b string) int {
	const longest = 64
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// fieldOf finds the field of struct v that the yaml key names.
func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// fieldKeys lists the yaml keys of struct type t.
func fieldKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" && name != "-" {
			keys = append(keys, name)
		}
	}
	return keys
}
