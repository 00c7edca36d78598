package labeler

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/relabel"
	"go.yaml.in/yaml/v3"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/sink"
)

var update = flag.Bool("update", false, "write the golden files anew")

const id64 = "3f4e8d2c1b0a99887766554433221100ffeeddccbbaa00112233445566778899"

// The containers of the golden files, as their sources describe them.
var (
	ctr = container.Container{ID: "worker-1", Runtime: "containerd", Namespace: "default", Image: "registry.example.net/worker:1.0",
		CgroupPath: "/default/worker-1", PID: 4711}
	nerdctlCompose = container.Container{ID: id64, Runtime: "containerd", Namespace: "default", Name: "shop-web-1", Image: "docker.io/library/nginx:1.27",
		CgroupPath: "/system.slice/nerdctl-" + id64 + ".scope", PID: 4712,
		Labels: map[string]string{"nerdctl/name": "shop-web-1", "com.docker.compose.project": "shop", "com.docker.compose.service": "web",
			"maintainer": "NGINX Docker Maintainers <docker-maint@nginx.com>"}}
	criPod = container.Container{ID: id64, Runtime: "containerd", Namespace: "k8s.io", Name: "cart", Image: "registry.example.net/cart@sha256:" + id64,
		KubernetesContainer: "cart", CgroupPath: "/kubepods.slice/kubepods-burstable.slice/cri-containerd-" + id64 + ".scope", PID: 4713,
		Pod: container.Pod{Name: "cart-7d9f5c-x2x4v", Namespace: "shop", UID: "1b4db7eb-4057-5ddf-91e0-36dec72071f5",
			Labels:      map[string]string{"app.kubernetes.io/name": "cart", "team": "payments"},
			Annotations: map[string]string{"profiles.grafana.com/cpu.scrape": "true"}},
		Labels: map[string]string{"io.kubernetes.container.name": "cart"}}
	docker = container.Container{ID: id64, Runtime: "docker", Name: "payments-api", Image: "payments/api:v3", CgroupPath: "/docker/" + id64, PID: 4714,
		Labels: map[string]string{"pyroscope.io/service_name": "payments", "stoker.enable": "true", "Team": "Payments", "logging": "promtail"},
		Env:    map[string]string{"OTEL_SERVICE_NAME": "not-this-one"}}
	bareCgroup  = container.Container{ID: id64, Runtime: "unknown", CgroupPath: "/machine/" + id64}
	service     = container.Container{ID: "nginx.service", Runtime: "systemd", SystemdUnit: "nginx.service", CgroupPath: "/system.slice/nginx.service"}
	userService = container.Container{ID: "nginx.service", Runtime: "systemd", SystemdUnit: "nginx.service", User: "1000",
		CgroupPath: "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service"}
)

var everything = []struct {
	name string
	c    container.Container
}{{"ctr", ctr}, {"nerdctl_compose", nerdctlCompose}, {"cri_pod", criPod}, {"docker", docker}, {"bare_cgroup", bareCgroup}, {"systemd", service},
	{"systemd_user", userService}}

func mustNew(t testing.TB, cfg Config) *Labeler {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func rules(t testing.TB, text string) (rules []*relabel.Config) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &rules); err != nil {
		t.Fatal(err)
	}
	return rules
}

func TestLabelSetsOfEachRuntime(t *testing.T) {
	for _, x := range everything {
		t.Run(x.name, func(t *testing.T) {
			l := mustNew(t, Config{Node: "edge-3", Static: map[string]string{"site": "fra1"}, ContainerID: true})
			got, keep := l.Labels(x.c, "")
			if !keep {
				t.Fatal("dropped without a rule")
			}
			var b strings.Builder
			fmt.Fprintln(&b, "# labels")
			for _, n := range slices.Sorted(maps.Keys(got)) {
				fmt.Fprintf(&b, "%s = %s\n", n, got[n])
			}
			fmt.Fprintln(&b, "# offered to relabel rules")
			offered := map[string]string{}
			l.offer(&x.c, "", func(n, v string) { offered[n] = v })
			for _, n := range slices.Sorted(maps.Keys(offered)) {
				fmt.Fprintf(&b, "%s = %s\n", n, offered[n])
			}
			golden(t, x.name+".txt", b.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew)\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

// podmanPod is a container in a pod of Podman's.
var podmanPod = container.Container{ID: "0a", Runtime: "podman", Name: "web", Pod: container.Pod{Name: "blog", UID: "0b"}}

// with changes a copy of a container.
func with(c container.Container, change func(*container.Container)) container.Container {
	c = c.Clone()
	for _, m := range []*map[string]string{&c.Labels, &c.Annotations, &c.Env, &c.Pod.Labels, &c.Pod.Annotations} {
		if *m == nil {
			*m = map[string]string{}
		}
	}
	change(&c)
	return c
}

func TestServiceNameIsTheFirstThatExists(t *testing.T) {
	l := mustNew(t, Config{Node: "edge-3"})
	// From the last to the first: each row adds something that wins over all before it.
	c := with(container.Container{CgroupPath: "/a/b.scope"}, func(*container.Container) {})
	for _, step := range []struct {
		want string
		add  func(*container.Container)
	}{
		{"b.scope", func(c *container.Container) {}},
		{"3f4e8d2c1b0a", func(c *container.Container) { c.ID = id64 }},
		{"podman-web.service", func(c *container.Container) { c.Labels["PODMAN_SYSTEMD_UNIT"] = "podman-web.service" }},
		{"web.service", func(c *container.Container) { c.SystemdUnit = "web.service" }},
		{"nerdy", func(c *container.Container) { c.Labels["nerdctl/name"] = "nerdy" }},
		{"web-1", func(c *container.Container) { c.Name = "web-1" }},
		{"shop/web", func(c *container.Container) {
			c.Labels["com.docker.compose.project"], c.Labels["com.docker.compose.service"] = "shop", "web"
		}},
		{"prod/cart", func(c *container.Container) { c.Pod.Namespace, c.KubernetesContainer = "prod", "cart" }},
		{"from attributes", func(c *container.Container) {
			c.Env["OTEL_RESOURCE_ATTRIBUTES"] = "deployment.environment=prod,service.name=from%20attributes"
		}},
		{"from-env", func(c *container.Container) { c.Env["OTEL_SERVICE_NAME"] = "from-env" }},
		{"pod-label", func(c *container.Container) { c.Pod.Labels["pyroscope.io/service_name"] = "pod-label" }},
		{"pod-annotation", func(c *container.Container) { c.Pod.Annotations["pyroscope.io/service_name"] = "pod-annotation" }},
		{"annotation", func(c *container.Container) { c.Annotations["pyroscope.io/service_name"] = "annotation" }},
		{"label", func(c *container.Container) { c.Labels["pyroscope.io/service_name"] = "label" }},
	} {
		c = with(c, step.add)
		if got, _ := l.Labels(c, ""); got["service_name"] != step.want {
			t.Errorf("service_name %q, want %q", got["service_name"], step.want)
		}
	}
	if got, _ := l.Labels(c, "asked-for"); got["service_name"] != "asked-for" {
		t.Errorf("service_name %q, want the container's own wish", got["service_name"])
	}
	if got, _ := l.Labels(container.Container{}, ""); got["service_name"] != "unknown" {
		t.Errorf("service_name %q of nothing at all", got["service_name"])
	}
	if got, _ := l.Labels(with(ctr, func(c *container.Container) { c.Env["OTEL_SERVICE_NAME"] = " \t\xff" }), ""); got["service_name"] != "worker-1" {
		t.Errorf("service_name %q, want blanks to count as none", got["service_name"])
	}
	half := with(ctr, func(c *container.Container) { c.Labels["com.docker.compose.project"] = "shop" })
	if got, _ := l.Labels(half, ""); got["service_name"] != "worker-1" {
		t.Errorf("service_name %q, want half a pair to count as none", got["service_name"])
	}
}

func TestResourceAttributes(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"service.name=a", "a"},
		{"service.name=a,service.name=b", "b"},
		{" service.name = a , x=y ,", "a"},
		{"x=y", ""},
		{"", ""},
		{"service.name=caf%C3%A9%2C%3Dx", "café,=x"},
		{"service%2Ename=a", "a"},
		{"service.name=a+b", "a+b"},
		{"service.name=a=b", "a=b"},
		{"service.name=a,broken", ""},
		{"service.name=a,x=%zz", ""},
		{"service.name=%ff", ""},
		{"=a", ""},
		{"service.name=" + strings.Repeat("a", maxAttributes), ""},
	} {
		if got := resourceAttribute(c.in, "service.name"); got != c.want {
			t.Errorf("%.60q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzResourceAttribute(f *testing.F) {
	for _, s := range []string{"service.name=a,b=c", "%,=,", "service.name=%C3%28", ",,,=", "a=b;c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v := resourceAttribute(s, "service.name"); !utf8.ValidString(v) {
			t.Errorf("%q gives %q", s, v)
		}
	})
}

// The rules that people have in their Alloy and Prometheus files, as far as they fit a profiler.
func TestRelabelRulesThatUsersWrite(t *testing.T) {
	swarm := with(docker, func(c *container.Container) {
		c.Labels["com.docker.swarm.service.name"] = "stack_api"
		c.Labels["1st"] = "digit in front"
	})
	for _, x := range []struct {
		name, rules string
		c           container.Container
		drop        bool
		want        map[string]string // "" means: must not be there
	}{
		{"keep a namespace", `[{source_labels: [__meta_kubernetes_namespace], regex: shop|billing, action: keep}]`, criPod, false,
			map[string]string{"namespace": "shop", "service_name": "shop/cart"}},
		{"keep another namespace", `[{source_labels: [__meta_kubernetes_namespace], regex: kube-system, action: keep}]`, criPod, true, nil},
		{"keep drops what has no namespace", `[{source_labels: [__meta_kubernetes_namespace], regex: .+, action: keep}]`, docker, true, nil},
		{"labelmap of Docker labels", `[{regex: __meta_docker_container_label_(.+), action: labelmap}]`, docker, false,
			map[string]string{"Team": "Payments", "logging": "promtail", "pyroscope_io_service_name": "payments", "stoker_enable": "true"}},
		{"labelmap of pod labels", `[{regex: __meta_kubernetes_pod_label_(.+), action: labelmap}]`, criPod, false,
			map[string]string{"app_kubernetes_io_name": "cart", "team": "payments"}},
		{"labelmap to a name with a digit in front", `[{regex: __meta_docker_container_label_(.+), action: labelmap}]`, swarm, false,
			map[string]string{"_1st": "digit in front", "com_docker_swarm_service_name": "stack_api"}},
		{"service name from compose", `[{source_labels: [__meta_docker_container_label_com_docker_compose_service], regex: (.+), target_label: service_name}]`,
			nerdctlCompose, false, map[string]string{"service_name": "web", "compose_project": "shop"}},
		{"service name from Docker's name with its slash", `[{source_labels: [__meta_docker_container_name], regex: /(.*), target_label: service_name}]`,
			docker, false, map[string]string{"service_name": "payments-api"}},
		{"service name as Alloy's default", `[{source_labels: [__meta_kubernetes_namespace, __meta_kubernetes_pod_container_name], separator: /, regex: (.+)/(.+),
			target_label: service_name, replacement: "ebpf/${1}/${2}"}]`, criPod, false, map[string]string{"service_name": "ebpf/shop/cart"}},
		{"service name from an annotation that is not there", `[{source_labels: [__meta_kubernetes_pod_annotation_pyroscope_io_service_name], regex: (.+),
			target_label: service_name}]`, criPod, false, map[string]string{"service_name": "shop/cart"}},
		{"drop an image", `[{source_labels: [__meta_container_image], regex: ".*/nginx:.*", action: drop}]`, nerdctlCompose, true, nil},
		{"drop another image", `[{source_labels: [__meta_docker_container_image], regex: "redis.*", action: drop}]`, docker, false,
			map[string]string{"container_image": "payments/api:v3"}},
		{"a pod of Podman's is none of Kubernetes'", `[{source_labels: [__meta_kubernetes_pod_phase], regex: .+, action: drop}, {source_labels: [__meta_docker_container_name],
			target_label: was}]`, podmanPod, false, map[string]string{"pod": "blog", "was": "/web"}},
		{"drop the finished", `[{source_labels: [__meta_kubernetes_pod_phase], regex: Pending|Succeeded|Failed|Completed, action: drop}]`, criPod, false, nil},
		{"keep the running on this node", `[{source_labels: [__meta_kubernetes_pod_phase, __meta_kubernetes_pod_node_name], regex: Running;edge-3, action: keep}]`,
			criPod, false, nil},
		{"keep what is opted in", `[{source_labels: [__meta_docker_container_label_stoker_enable], regex: "true", action: keep}]`, docker, false, nil},
		{"keep by presence of an annotation", `[{source_labels: [__meta_kubernetes_pod_annotationpresent_profiles_grafana_com_cpu_scrape], regex: "true", action: keep}]`,
			criPod, false, nil},
		{"a shard of a fleet", `[{source_labels: [__container_id__], modulus: 4, target_label: __tmp_shard, action: hashmod},
			{source_labels: [__tmp_shard], regex: "0|1|2|3", action: keep}]`, docker, false, map[string]string{"__tmp_shard": ""}},
		{"lowercase", `[{source_labels: [__meta_docker_container_label_Team], target_label: team, action: lowercase}]`, docker, false,
			map[string]string{"team": "payments"}},
		{"uppercase", `[{source_labels: [node], target_label: node, action: uppercase}]`, docker, false, map[string]string{"node": "EDGE-3"}},
		{"container id as Alloy users write it", `[{source_labels: [__meta_docker_container_id], target_label: __container_id__},
			{source_labels: [__container_id__], regex: "(.{12}).*", target_label: container_id}]`, docker, false, map[string]string{"container_id": id64[:12]}},
		{"Kubernetes' container id with its scheme", `[{source_labels: [__meta_kubernetes_pod_container_id], regex: "containerd://(.+)", target_label: cid}]`,
			criPod, false, map[string]string{"cid": id64}},
		{"a constant", `[{target_label: cluster, replacement: edge}]`, ctr, false, map[string]string{"cluster": "edge"}},
		{"labeldrop", `[{regex: container_(image|runtime), action: labeldrop}]`, docker, false,
			map[string]string{"container_image": "", "container_runtime": "", "container_name": "payments-api"}},
		{"labelkeep without a service name", `[{regex: node, action: labelkeep}]`, docker, false,
			map[string]string{"node": "edge-3", "service_name": "payments", "container_name": ""}},
		{"keepequal", `[{source_labels: [__meta_kubernetes_pod_container_name], target_label: container, action: keepequal}]`, criPod, false, nil},
		{"dropequal", `[{source_labels: [__meta_kubernetes_pod_container_name], target_label: container, action: dropequal}]`, criPod, true, nil},
		{"static label used by a rule", `[{source_labels: [site], target_label: region, regex: "(...).*"}]`, ctr, false,
			map[string]string{"region": "fra", "site": "fra1"}},
		{"systemd units of one kind", `[{source_labels: [__meta_container_systemd_unit], regex: "nginx.*", action: keep}]`, service, false,
			map[string]string{"systemd_unit": "nginx.service", "service_name": "nginx.service"}},
		{"Docker rules leave pods alone", `[{source_labels: [__meta_docker_container_id], regex: .+, action: keep}]`, criPod, true, nil},
		{"runtime and its namespace", `[{source_labels: [__meta_container_runtime, __meta_container_runtime_namespace], separator: /, target_label: where}]`, ctr, false,
			map[string]string{"where": "containerd/default"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			l := mustNew(t, Config{Node: "edge-3", Static: map[string]string{"site": "fra1"}, Relabel: rules(t, x.rules)})
			got, keep := l.Labels(x.c, "")
			if keep == x.drop {
				t.Fatalf("keep %v, want %v; labels %v", keep, !x.drop, got)
			}
			for n, want := range x.want {
				if got[n] != want {
					t.Errorf("%s = %q, want %q", n, got[n], want)
				}
			}
			if keep {
				check(t, got)
			}
		})
	}
}

// check holds for all labels that leave the package.
func check(t *testing.T, got sink.Labels) {
	t.Helper()
	if got["service_name"] == "" {
		t.Error("no service_name")
	}
	if len(got) > MaxLabels {
		t.Errorf("%d labels", len(got))
	}
	for n, v := range got {
		if !validName(n) || strings.HasPrefix(n, "__") || len(n) > MaxNameBytes {
			t.Errorf("label name %q", n)
		}
		if v == "" || len(v) > MaxValueBytes || !utf8.ValidString(v) {
			t.Errorf("label %s has %d bytes, valid UTF-8 %v", n, len(v), utf8.ValidString(v))
		}
	}
}

func TestHostileContainersGetBoundedLabels(t *testing.T) {
	evil := with(docker, func(c *container.Container) {
		c.Name = strings.Repeat("ä", 4000)
		c.Image = "\xff\xfe"
		for i := range 5000 {
			c.Labels[fmt.Sprintf("label.%d/\xffname-%s", i, strings.Repeat("n", i%300))] = strings.Repeat("v", i)
		}
		c.Labels["a.b"], c.Labels["a-b"], c.Labels["a_b"] = "dot", "dash", "underscore"
		c.Labels[""] = "nameless"
		c.Labels["pyroscope.io/service_name"] = "\x00" + strings.Repeat("€", 1000)
	})
	l := mustNew(t, Config{Node: "edge-3", Static: map[string]string{"site": "fra1"}, Relabel: rules(t, `[{regex: __meta_docker_container_label_(.+), action: labelmap}]`)})
	got, keep := l.Labels(evil, "")
	if !keep {
		t.Fatal("dropped without a rule")
	}
	check(t, got)
	for _, n := range []string{"site", "node", "container_name", "container_image", "container_runtime"} {
		if got[n] == "" {
			t.Errorf("label %s fell victim to the container's own", n)
		}
	}
	if s := l.Stats(); s.Dropped == 0 || s.Cut == 0 {
		t.Errorf("stats %+v, want dropped and cut labels counted", s)
	}
}

func TestNamesThatBecomeEqualAreCounted(t *testing.T) {
	l := mustNew(t, Config{Relabel: rules(t, `[{regex: __meta_docker_container_label_(.*), replacement: "${1}", action: labelmap}, {regex: "1(.*)", replacement: "_1$1", action: labelmap}]`)})
	c := with(docker, func(c *container.Container) { c.Labels["1a"] = "x" })
	got, _ := l.Labels(c, "")
	check(t, got)
	if got["_1a"] != "x" || l.Stats().Clashes != 1 {
		t.Errorf("labels %v, stats %+v", got, l.Stats())
	}
}

func TestWrongConfigurationNamesTheRemedy(t *testing.T) {
	many := map[string]string{}
	for i := range 20 {
		many[fmt.Sprintf("l%d", i)] = "v"
	}
	for _, x := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"service_name", Config{Static: map[string]string{"service_name": "x"}}, []string{"stoker.service"}},
		{"names", Config{Static: map[string]string{"a-b": "x", "__x": "y", "1": "z"}}, []string{`"a-b"`, `"__x"`, `"1"`}},
		{"values", Config{Static: map[string]string{"a": "", "b": "\xff", "c": strings.Repeat("x", 600)}}, []string{"label a", "label b", "label c"}},
		{"too many", Config{Static: many}, []string{"20 labels", "room for 16"}},
		{"rules", Config{Relabel: []*relabel.Config{nil, {Action: relabel.HashMod, TargetLabel: "x"}, {Action: relabel.Replace, TargetLabel: "a.b"}}},
			[]string{"rule 1", "rule 2: ", "modulus", "rule 3", "a.b"}},
	} {
		_, err := New(x.cfg)
		for _, want := range x.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want it to say %q", x.name, err, want)
			}
		}
	}
}

func TestDocumentationNamesEveryLabel(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "docs", "labels.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Clone(own)
	l := mustNew(t, Config{Node: "edge-3"})
	for _, x := range everything {
		l.offer(&x.c, "asked", func(n, _ string) {
			for _, kind := range []string{"_label_", "_labelpresent_", "_annotation_", "_annotationpresent_"} {
				if before, _, ok := strings.Cut(n, kind); ok {
					n = before + kind
				}
			}
			names = append(names, n)
		})
	}
	for _, n := range names {
		if !strings.Contains(string(doc), "`"+n) {
			t.Errorf("docs/labels.md does not mention %s", n)
		}
	}
}

func BenchmarkLabels(b *testing.B) {
	for _, x := range []struct{ name, rules string }{
		{"plain", "[]"},
		{"relabel", `[{source_labels: [__meta_kubernetes_namespace], regex: shop|billing, action: keep}, {regex: __meta_kubernetes_pod_label_(.+), action: labelmap}]`},
	} {
		b.Run(x.name, func(b *testing.B) {
			l := mustNew(b, Config{Node: "edge-3", Static: map[string]string{"site": "fra1"}, Relabel: rules(b, x.rules)})
			b.ReportAllocs()
			for b.Loop() {
				l.Labels(criPod, "")
			}
		})
	}
}
