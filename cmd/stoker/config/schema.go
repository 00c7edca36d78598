package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/relabel"
)

// Key is one key of the configuration that holds a value (not a group of keys).
type Key struct {
	// Path is the key as `config show` spells it, "pyroscope.tls.ca_file".
	Path string
	// Env and Flag are the other two ways to set it, "STOKER_PYROSCOPE_TLS_CA_FILE" and "pyroscope-tls-ca-file"; both are
	// empty for a list of groups (targets, relabel_configs), which only the file can hold.
	Env, Flag string
	// Help says what the key does, Form how its value is written.
	Help, Form string
	// Live: a running agent takes a new value on SIGHUP.
	Live bool
	// Switch: the value is true or false.
	Switch bool

	fields []int // the index of the field in each struct on the way; pyroscope counts as a struct here
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	bytesType    = reflect.TypeFor[Bytes]()
	percentType  = reflect.TypeFor[Percent]()
	stringsType  = reflect.TypeFor[[]string]()
	mapType      = reflect.TypeFor[map[string]string]()
	relabelType  = reflect.TypeFor[[]*relabel.Config]()
	endpoints    = reflect.TypeFor[[]Endpoint]()
)

// Keys lists every key in the order of Config. It is the one source of the environment variables, the flags and the manual.
func Keys() []Key { return keysOf(reflect.TypeFor[Config](), "", nil) }

func keysOf(t reflect.Type, prefix string, fields []int) []Key {
	var keys []Key
	for i := range t.NumField() {
		f := t.Field(i)
		path, at := join(prefix, f.Tag.Get("yaml")), append(fields[:len(fields):len(fields)], i)
		switch {
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, keysOf(f.Type, path, at)...)
			continue
		case f.Type == endpoints:
			keys = append(keys, keysOf(f.Type.Elem(), path, at)...)
			continue
		}
		k := Key{
			Path: path, Help: f.Tag.Get("help"), Form: formOf(f.Type),
			Live: f.Tag.Get("live") == "true", Switch: f.Type.Kind() == reflect.Bool, fields: at,
		}
		if !groups(f.Type) {
			k.Env = "STOKER_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
			k.Flag = strings.NewReplacer(".", "-", "_", "-").Replace(path)
		}
		keys = append(keys, k)
	}
	return keys
}

// groups reports whether t is a list of groups of keys.
func groups(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t != stringsType
}

// formOf names the form of a value for help texts.
func formOf(t reflect.Type) string {
	switch t {
	case durationType:
		return "duration"
	case bytesType:
		return "size"
	case percentType:
		return "percent"
	case stringsType:
		return "list"
	case mapType:
		return "name=value,..."
	}
	switch t.Kind() {
	case reflect.Int:
		return "number"
	case reflect.Bool:
		return "true|false"
	case reflect.Slice:
		return "groups"
	}
	return "text"
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// elementPath names entry i of n of a list of groups. A single Pyroscope server may be written without a list, so it is
// named without an index.
func elementPath(list string, i, n int) string {
	if list == "pyroscope" && n == 1 {
		return list
	}
	return list + "[" + strconv.Itoa(i) + "]"
}

// schemaPath removes the indexes from a path: "pyroscope[1].url" is the key "pyroscope.url".
func schemaPath(path string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(path, "[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, path, _ = strings.Cut(after, "]")
	}
}

// set gives one key the value that text says, as the environment and flags write it. Keys of pyroscope go to the only entry
// of that list, which is made if there is none.
func (k Key) set(c *Config, text string) error {
	v := reflect.ValueOf(c).Elem()
	for _, i := range k.fields {
		if v.Type() == endpoints {
			switch v.Len() {
			case 0:
				v.Set(reflect.Append(v, reflect.ValueOf(DefaultEndpoint())))
			case 1:
			default:
				return fmt.Errorf("the file lists %d Pyroscope servers; this sets a value of one: change the file", v.Len())
			}
			v = v.Index(0)
		}
		v = v.Field(i)
	}
	return setText(v, text)
}

// setText parses text into v, which is not a group.
func setText(v reflect.Value, text string) error {
	switch v.Type() {
	case stringsType:
		list := []string{}
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		v.Set(reflect.ValueOf(list))
		return nil
	case mapType:
		m := map[string]string{}
		for part := range strings.SplitSeq(text, ",") {
			if strings.TrimSpace(part) == "" {
				continue
			}
			name, value, ok := strings.Cut(part, "=")
			if name = strings.TrimSpace(name); !ok || name == "" {
				return fmt.Errorf("write it as name=value,name=value")
			}
			if _, twice := m[name]; twice {
				return fmt.Errorf("%q is there twice", name)
			}
			m[name] = strings.TrimSpace(value)
		}
		v.Set(reflect.ValueOf(m))
		return nil
	}
	return setScalar(v, text)
}

// setScalar parses a single value.
func setScalar(v reflect.Value, text string) error {
	switch v.Type() {
	case durationType:
		d, err := ParseDuration(text)
		if err != nil {
			return err
		}
		v.SetInt(int64(d))
		return nil
	case bytesType:
		b, err := ParseBytes(text)
		if err != nil {
			return err
		}
		v.SetInt(int64(b))
		return nil
	case percentType:
		p, err := ParsePercent(text)
		if err != nil {
			return err
		}
		v.SetFloat(float64(p))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
		return nil
	case reflect.Int:
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		v.SetInt(int64(n))
		return nil
	case reflect.Bool:
		switch text {
		case "true", "false":
			v.SetBool(text == "true")
			return nil
		}
		return fmt.Errorf("%q is neither true nor false", text)
	}
	return fmt.Errorf("cannot hold a value of type %s", v.Type())
}
