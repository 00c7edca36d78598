package labeler

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// The page for users of Grafana Alloy is true: its files do what it says they do, and of each label that Alloy's rules read, that it is
// there or not.
func TestThePageForUsersOfAlloy(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "from-alloy.md"))
	if err != nil {
		t.Fatal(err)
	}
	files := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	if len(files) != 2 {
		t.Fatalf("%d files in it; this test knows what two of them do", len(files))
	}
	from := func(text string) *Labeler {
		t.Helper()
		var file struct {
			Rules  yaml.Node         `yaml:"relabel_configs"`
			Labels map[string]string `yaml:"labels"`
		}
		if err := yaml.Unmarshal([]byte(text), &file); err != nil {
			t.Fatal(err)
		}
		list, err := yaml.Marshal(&file.Rules)
		if err != nil {
			t.Fatal(err)
		}
		return mustNew(t, Config{Node: "edge-3", Static: file.Labels, Relabel: rules(t, string(list))})
	}
	labelled := func(key, value string) container.Container {
		return with(docker, func(c *container.Container) { c.Labels[key] = value })
	}
	host, names := from(files[0][1]), from(files[1][1])
	for _, x := range []struct {
		what string
		l    *Labeler
		c    container.Container
		want map[string]string // nil: not profiled
	}{
		{"the file for a Docker host", host, labelled("com.example.tier", "front"), map[string]string{"tier": "front", "service_name": "payments-api", "site": "fra1"}},
		{"the file for a Docker host, of another team", host, labelled("team", "shop"), map[string]string{"service_name": "payments-api"}},
		{"the file for a Docker host, of the team that it drops", host, labelled("team", "infra"), nil},
		{"Alloy's names, of a pod", names, criPod, map[string]string{"service_name": "ebpf/shop/cart"}},
		{"Alloy's names, of Docker", names, docker, map[string]string{"service_name": "/payments-api"}},
	} {
		got, keep := x.l.Labels(x.c, "")
		if keep != (x.want != nil) {
			t.Errorf("%s: profiled: %t", x.what, keep)
		}
		for name, value := range x.want {
			if got[name] != value {
				t.Errorf("%s: %s is %q, want %q", x.what, name, got[name], value)
			}
		}
	}

	// Rule by rule: the names of the first column, and whether the second says that they are there.
	offered := map[string]bool{}
	l := mustNew(t, Config{Node: "edge-3"})
	for _, c := range []container.Container{docker, criPod} {
		l.offer(&c, "", func(name, _ string) { offered[name] = true })
	}
	there := func(pattern string) bool {
		match := regexp.MustCompile("^" + strings.NewReplacer("NAME", ".+", "*", ".+").Replace(pattern) + "$")
		for name := range offered {
			if match.MatchString(name) {
				return true
			}
		}
		return false
	}
	_, table, _ := strings.Cut(string(page), "## Rule by rule\n")
	table, _, _ = strings.Cut(table, "\n## ")
	checked := 0
	for row := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(row, "|\n"), " | ")
		if len(cells) != 2 {
			continue
		}
		same, gone := strings.HasPrefix(cells[1], "the same"), strings.HasPrefix(cells[1], "not there")
		for _, quoted := range regexp.MustCompile("`([^` ]+)`").FindAllStringSubmatch(cells[0], -1) {
			for _, name := range braces(strings.Replace(quoted[1], "…", "__meta_kubernetes", 1)) {
				if !strings.HasPrefix(name, "__") || !same && !gone {
					continue
				}
				checked++
				if there(name) != same {
					t.Errorf("%s: the page says %q, and it is there: %t", name, cells[1], !same)
				}
			}
		}
	}
	if checked < 20 {
		t.Errorf("%d names were found in the table", checked)
	}
}

// braces writes out a{b,c}d as abd and acd, as shells do.
func braces(s string) []string {
	before, rest, open := strings.Cut(s, "{")
	list, after, closed := strings.Cut(rest, "}")
	if !open || !closed {
		return []string{s}
	}
	var all []string
	for _, one := range strings.Split(list, ",") {
		all = append(all, braces(before+one+after)...)
	}
	return all
}
