package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Value is one value of a configuration as `config show` prints it.
type Value struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Origin Origin `json:"origin"`
	// Live: a running agent takes a new value on SIGHUP.
	Live bool `json:"live"`
	// Env is the variable that sets the key, Help says what it does; empty for an entry of a list.
	Env  string `json:"env,omitempty"`
	Help string `json:"help,omitempty"`

	compare string // the value itself where Value hides it
}

// hidden stands for a secret.
const hidden = "<hidden>"

// Values lists every value in the order of Config, secrets hidden. In entries of lists, keys that are not set are left out.
func (l *Loaded) Values() []Value {
	values := flatten(l.Config)
	keys := map[string]Key{}
	for _, k := range Keys() {
		keys[k.Path] = k
	}
	for i := range values {
		v := &values[i]
		v.Origin = l.Origin(v.Key)
		v.Env, v.Help = keys[v.Key].Env, keys[v.Key].Help
	}
	return values
}

func flatten(c Config) []Value { return flattenGroup(nil, reflect.ValueOf(c), "", false) }

func flattenGroup(values []Value, v reflect.Value, path string, inList bool) []Value {
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag
		at := join(path, tag.Get("yaml"))
		switch {
		case f.Kind() == reflect.Struct:
			values = flattenGroup(values, f, at, inList)
		case f.Type() == endpoints && f.Len() > 0:
			for i := range f.Len() {
				values = flattenGroup(values, f.Index(i), elementPath(at, i, f.Len()), true)
			}
		case groups(f.Type()) && f.Len() > 0:
			for i := range f.Len() {
				text := flow(f.Index(i))
				values = append(values, Value{Key: elementPath(at, i, f.Len()), Value: text, Live: tag.Get("live") == "true", compare: text})
			}
		case inList && f.IsZero():
		default:
			value := Value{Key: at, Value: render(f), Live: tag.Get("live") == "true"}
			value.compare = value.Value
			if tag.Get("secret") == "true" && !f.IsZero() {
				m := f.Interface().(map[string]string)
				shown := map[string]string{}
				for name := range m {
					shown[name] = hidden
				}
				value.Value = flow(reflect.ValueOf(shown))
			}
			values = append(values, value)
		}
	}
	return values
}

// render writes a value as the file would.
func render(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case time.Duration:
		return FormatDuration(value)
	case Bytes:
		return value.String()
	case Percent:
		return value.String()
	case string:
		return value
	}
	return flow(v)
}

// flow writes a value as YAML on one line.
func flow(v reflect.Value) string {
	switch {
	case v.Type() == mapType:
		m := v.Interface().(map[string]string)
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(m)) {
			parts = append(parts, scalar(name)+": "+scalar(m[name]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case v.Type() == stringsType:
		var parts []string
		for _, s := range v.Interface().([]string) {
			parts = append(parts, scalar(s))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case v.Kind() == reflect.Slice && v.Len() == 0:
		return "[]"
	case v.Type() == reflect.TypeFor[Rule]():
		var parts []string
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				text := flow(f)
				if f.Kind() == reflect.String {
					text = scalar(f.String())
				}
				parts = append(parts, v.Type().Field(i).Tag.Get("yaml")+": "+text)
			}
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return encode(v.Interface())
}

// scalar quotes text where YAML inside brackets needs it.
func scalar(s string) string {
	n := yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}}}
	text := encode(&n)
	return strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
}

// encode is YAML on one line. Values that YAML cannot write do not exist in a Config, so an error is shown in their place.
func encode(value any) string {
	n, ok := value.(*yaml.Node)
	if !ok {
		n = new(yaml.Node)
		if err := n.Encode(value); err != nil {
			return err.Error()
		}
		if n.Kind != yaml.ScalarNode {
			n.Style = yaml.FlowStyle
		}
	}
	text, err := yaml.Marshal(n)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// Change is one difference between two configurations.
type Change struct {
	Key, Old, New string // Old or New is empty where the key is only in the other
	// Live: a running agent can take it; otherwise it needs a restart.
	Live bool
}

// Diff lists what differs between two configurations, in the order of Config. Secrets stay hidden.
func Diff(before, after Config) []Change {
	type pair struct{ before, after *Value }
	pairs := map[string]*pair{}
	var order []string
	at := func(key string) *pair {
		if pairs[key] == nil {
			pairs[key] = &pair{}
			order = append(order, key)
		}
		return pairs[key]
	}
	for _, v := range flatten(before) {
		at(v.Key).before = &v
	}
	for _, v := range flatten(after) {
		at(v.Key).after = &v
	}
	var changes []Change
	for _, key := range order {
		p := pairs[key]
		switch {
		case p.before == nil:
			changes = append(changes, Change{Key: key, New: p.after.Value, Live: p.after.Live})
		case p.after == nil:
			changes = append(changes, Change{Key: key, Old: p.before.Value, Live: p.before.Live})
		case p.before.compare != p.after.compare:
			changes = append(changes, Change{Key: key, Old: p.before.Value, New: p.after.Value, Live: p.after.Live})
		}
	}
	slices.SortStableFunc(changes, func(a, b Change) int { return keyOrder(a.Key) - keyOrder(b.Key) })
	return changes
}

// TakeLive gives c the values of from that a running agent can take over, and leaves the others.
func (c *Config) TakeLive(from Config) { takeLive(reflect.ValueOf(c).Elem(), reflect.ValueOf(from)) }

func takeLive(to, from reflect.Value) {
	for i := range to.NumField() {
		switch f := to.Field(i); {
		case to.Type().Field(i).Tag.Get("live") == "true":
			f.Set(from.Field(i))
		case f.Kind() == reflect.Struct:
			takeLive(f, from.Field(i))
		}
	}
}
