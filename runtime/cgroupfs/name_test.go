package cgroupfs

import (
	"path/filepath"
	"strings"
	"testing"
)

var (
	id64  = strings.Repeat("0123456789abcdef", 4)
	id64b = strings.Repeat("fedcba9876543210", 4)
)

const (
	uid     = "11111111-2222-3333-4444-555555555555"
	uidUnit = "11111111_2222_3333_4444_555555555555"
	task32  = "0123456789abcdef0123456789abcdef"
)

const (
	besteffort = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uidUnit + ".slice"
	burstable  = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidUnit + ".slice"
	session    = "/user.slice/user-1000.slice/user@1000.service"
)

func TestSpecPathIsWhereARuntimePutsAContainer(t *testing.T) {
	for in, want := range map[string]string{
		"/default/c1": "/default/c1",
		"/kubepods/besteffort/pod" + uid + "/crio-" + id64:                   "/kubepods/besteffort/pod" + uid + "/crio-" + id64,
		"kubepods-besteffort-pod" + uidUnit + ".slice:crio:" + id64:          besteffort + "/crio-" + id64 + ".scope",
		"kubepods-burstable-pod" + uidUnit + ".slice:cri-containerd:" + id64: burstable + "/cri-containerd-" + id64 + ".scope",
		"system.slice:docker:" + id64:                                        "/system.slice/docker-" + id64 + ".scope",
		":docker:" + id64:                                                    "/system.slice/docker-" + id64 + ".scope",
		"-.slice:crio:x":                                                     "/crio-x.scope",
		"machine.slice::x":                                                   "/machine.slice/x.scope",
		"":                                                                   "", "relative": "", "/a/../b": "", "/a/": "", "a:b": "", "a.slice:b:": "", "a:b:c": "", "a--b.slice:c:d": "", "-a.slice:c:d": "", "a.slice:b:c:d": "",
		"a.slice:../../etc:c": "", "../a.slice:b:c": "", "/" + strings.Repeat("a", 5000): "", strings.Repeat("a", 5000) + ".slice:b:c": "",
	} {
		if got, ok := SpecPath(in); ok != (want != "") || ok && got != want {
			t.Errorf("SpecPath(%.100q) = %.200q, %t, want %q", in, got, ok, want)
		}
	}
}

func FuzzSpecPath(f *testing.F) {
	for _, s := range []string{"/a", "a-b.slice:c:d", ":x:y", "-.slice:a:b", "...slice:..:.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, ok := SpecPath(s); ok && (!strings.HasPrefix(p, "/") || filepath.Clean(p) != p) {
			t.Errorf("SpecPath(%q) = %q", s, p)
		}
	})
}

// named has one row per form in which an engine names a container's cgroup, with each driver.
var named = []struct {
	engine, driver, form, path string
	want                       Name // Kind and, where empty, Path are filled in
}{
	{"docker", "cgroupfs", "", "/docker/" + id64, Name{Runtime: "docker", ID: id64}},
	{"docker", "cgroupfs", "--cgroup-parent", "/batch/" + id64, Name{ID: id64}},
	{"docker", "cgroupfs", "--cgroup-parent, deep", "/a/b/c/" + id64, Name{ID: id64}},
	{"docker", "cgroupfs", "below the service, without systemd's driver", "/system.slice/docker.service/docker/" + id64, Name{Runtime: "docker", ID: id64}},
	{"docker", "systemd", "", "/system.slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
	{"docker", "systemd", "--cgroup-parent", "/batch.slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
	{"docker", "systemd", "--cgroup-parent, deep", "/batch.slice/batch-night.slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
	{"docker", "systemd", "rootless", session + "/user.slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
	{"docker", "systemd", "rootless, own slice", session + "/app.slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
	{"cri-dockerd", "cgroupfs", "", "/kubepods/burstable/pod" + uid + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"cri-dockerd", "systemd", "", burstable + "/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64, PodUID: uid}},

	{"ctr", "cgroupfs", "", "/default/c1", Name{Runtime: "containerd", Namespace: "default", ID: "c1"}},
	{"ctr", "cgroupfs", "in k8s.io", "/k8s.io/my_job.2", Name{Runtime: "containerd", Namespace: "k8s.io", ID: "my_job.2"}},
	{"ctr", "cgroupfs", "a name with a runtime's word in it", "/default/my-conmon-1", Name{Runtime: "containerd", Namespace: "default", ID: "my-conmon-1"}},
	{"ctr", "systemd", "--runc-systemd-cgroup", "/system.slice/default-" + id64 + ".scope", Name{ID: id64}},
	{"nerdctl", "cgroupfs", "", "/default/" + id64, Name{Runtime: "containerd", Namespace: "default", ID: id64}},
	{"nerdctl", "cgroupfs", "in k8s.io", "/k8s.io/" + id64, Name{Runtime: "containerd", Namespace: "k8s.io", ID: id64}},
	{"nerdctl", "cgroupfs", "in a namespace of its own", "/team-a/" + id64, Name{ID: id64}},
	{"nerdctl", "systemd", "", "/system.slice/nerdctl-" + id64 + ".scope", Name{Runtime: "containerd", ID: id64}},
	{"nerdctl", "systemd", "rootless", session + "/user.slice/nerdctl-" + id64 + ".scope", Name{Runtime: "containerd", ID: id64}},

	{"CRI containerd", "cgroupfs", "guaranteed", "/kubepods/pod" + uid + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "cgroupfs", "burstable", "/kubepods/burstable/pod" + uid + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "cgroupfs", "best effort, a free name", "/kubepods/besteffort/pod" + uid + "/main", Name{Runtime: "containerd", ID: "main", PodUID: uid}},
	{"CRI containerd", "cgroupfs", "static pod", "/kubepods/burstable/pod" + task32 + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: task32}},
	{"CRI containerd", "cgroupfs", "k3s, k0s, microk8s", "/kubepods/besteffort/pod" + uid + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "cgroupfs", "k3s in a user's session", session + "/app.slice/k3s-rootless.service/kubepods/besteffort/pod" + uid + "/" + id64,
		Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "cgroupfs", "the kubelet has a root of its own", "/kubelet/kubepods/burstable/pod" + uid + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "systemd", "guaranteed", "/kubepods.slice/kubepods-pod" + uidUnit + ".slice/cri-containerd-" + id64 + ".scope",
		Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "systemd", "burstable", burstable + "/cri-containerd-" + id64 + ".scope", Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "systemd", "best effort", besteffort + "/cri-containerd-" + id64 + ".scope", Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "systemd", "static pod", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + task32 + ".slice/cri-containerd-" + id64 + ".scope",
		Name{Runtime: "containerd", ID: id64, PodUID: task32}},
	{"CRI containerd", "systemd", "the kubelet has a root of its own", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + uidUnit + ".slice/cri-containerd-" + id64 + ".scope",
		Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "mixed", "only the kubelet uses systemd", "/system.slice/containerd.service/kubepods-besteffort-pod" + uidUnit + ".slice:cri-containerd:" + id64,
		Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "mixed", "the same, at the root", "/kubepods-besteffort-pod" + uidUnit + ".slice:cri-containerd:" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
	{"CRI containerd", "mixed", "the same, of k3s", "/k3s.slice/kubepods-burstable-pod" + uidUnit + ".slice:cri-containerd:" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},

	{"CRI-O", "cgroupfs", "", "/kubepods/burstable/pod" + uid + "/crio-" + id64, Name{Runtime: "cri-o", ID: id64, PodUID: uid}},
	{"CRI-O", "cgroupfs", "no parent", "/crio/crio-" + id64, Name{Runtime: "cri-o", ID: id64}},
	{"CRI-O", "systemd", "", besteffort + "/crio-" + id64 + ".scope", Name{Runtime: "cri-o", ID: id64, PodUID: uid}},
	{"CRI-O", "systemd", "crun", besteffort + "/crio-" + id64 + ".scope/container",
		Name{Runtime: "cri-o", ID: id64, PodUID: uid, Path: besteffort + "/crio-" + id64 + ".scope"}},
	{"CRI-O", "systemd", "no parent", "/system.slice/crio-" + id64 + ".scope", Name{Runtime: "cri-o", ID: id64}},
	{"CRI-O", "mixed", "only the kubelet uses systemd", "/kubepods-burstable-pod" + uidUnit + ".slice:crio:" + id64, Name{Runtime: "cri-o", ID: id64, PodUID: uid}},

	{"Podman", "cgroupfs", "", "/libpod_parent/libpod-" + id64, Name{Runtime: "podman", ID: id64}},
	{"Podman", "cgroupfs", "pod", "/libpod_parent/" + id64b + "/libpod-" + id64, Name{Runtime: "podman", ID: id64}},
	{"Podman", "cgroupfs", "--cgroup-parent", "/batch/libpod-" + id64, Name{Runtime: "podman", ID: id64}},
	{"Podman", "systemd", "", "/machine.slice/libpod-" + id64 + ".scope", Name{Runtime: "podman", ID: id64}},
	{"Podman", "systemd", "crun", "/machine.slice/libpod-" + id64 + ".scope/container", Name{Runtime: "podman", ID: id64, Path: "/machine.slice/libpod-" + id64 + ".scope"}},
	{"Podman", "systemd", "pod", "/machine.slice/machine-libpod_pod_" + id64b + ".slice/libpod-" + id64 + ".scope", Name{Runtime: "podman", ID: id64}},
	{"Podman", "systemd", "rootless", session + "/user.slice/libpod-" + id64 + ".scope", Name{Runtime: "podman", ID: id64}},
	{"Podman", "systemd", "rootless, crun", session + "/user.slice/libpod-" + id64 + ".scope/container",
		Name{Runtime: "podman", ID: id64, Path: session + "/user.slice/libpod-" + id64 + ".scope"}},
	{"Podman", "systemd", "rootless pod", session + "/user.slice/user-libpod_pod_" + id64b + ".slice/libpod-" + id64 + ".scope", Name{Runtime: "podman", ID: id64}},
	{"Podman", "split", "Quadlet", "/system.slice/web.service/libpod-payload-" + id64, Name{Runtime: "podman", ID: id64, Unit: "web.service"}},
	{"Podman", "split", "Quadlet, crun", "/system.slice/web.service/libpod-payload-" + id64 + "/container",
		Name{Runtime: "podman", ID: id64, Unit: "web.service", Path: "/system.slice/web.service/libpod-payload-" + id64}},
	{"Podman", "split", "Quadlet instance", `/system.slice/system-web.slice/web@a\x2db.service/libpod-payload-` + id64, Name{Runtime: "podman", ID: id64, Unit: `web@a\x2db.service`}},
	{"Podman", "split", "rootless Quadlet", session + "/app.slice/web.service/libpod-payload-" + id64, Name{Runtime: "podman", ID: id64, Unit: "web.service"}},

	{"LXC", "cgroupfs", "2", "/lxc/web", Name{Runtime: "lxc", ID: "web"}},
	{"LXC", "cgroupfs", "2, its init", "/lxc/web/init.scope", Name{Runtime: "lxc", ID: "web", Path: "/lxc/web"}},
	{"LXC", "cgroupfs", "3", "/lxc.payload/web", Name{Runtime: "lxc", ID: "web"}},
	{"LXC", "cgroupfs", "4", "/lxc.payload.web", Name{Runtime: "lxc", ID: "web"}},
	{"LXC", "cgroupfs", "4, in a user's session", session + "/app.slice/run-r1.scope/lxc.payload.web", Name{Runtime: "lxc", ID: "web"}},
	{"LXC", "cgroupfs", "Proxmox", "/lxc/101/ns", Name{Runtime: "lxc", ID: "101", Path: "/lxc/101"}},
	{"Incus", "cgroupfs", "", "/lxc.payload.web", Name{Runtime: "lxc", ID: "web"}},
	{"Incus", "cgroupfs", "project", "/lxc.payload.project_web/system.slice/nginx.service", Name{Runtime: "lxc", ID: "project_web", Path: "/lxc.payload.project_web"}},
	{"nspawn", "systemd", "", "/machine.slice/systemd-nspawn@web.service/payload", Name{Runtime: "nspawn", ID: "web"}},
	{"nspawn", "systemd", "escaped", `/machine.slice/systemd-nspawn@my\x2dweb.service/payload`, Name{Runtime: "nspawn", ID: "my-web"}},
	{"nspawn", "systemd", "its init", "/machine.slice/systemd-nspawn@web.service/payload/init.scope",
		Name{Runtime: "nspawn", ID: "web", Path: "/machine.slice/systemd-nspawn@web.service/payload"}},
	{"nspawn", "systemd", "by hand", "/machine.slice/machine-web.scope", Name{Runtime: "nspawn", ID: "web"}},
	{"nspawn", "systemd", "by hand, its payload", "/machine.slice/machine-web.scope/payload", Name{Runtime: "nspawn", ID: "web", Path: "/machine.slice/machine-web.scope"}},
	{"nspawn", "systemd", "by hand, escaped", `/machine.slice/machine-my\x2dweb.scope`, Name{Runtime: "nspawn", ID: "my-web"}},
	{"libvirt LXC", "systemd", "", `/machine.slice/machine-lxc\x2d4711\x2dweb\x2d1.scope`, Name{Runtime: "libvirt", ID: "web-1"}},
	{"libvirt LXC", "systemd", "its emulator's child", `/machine.slice/machine-lxc\x2d4711\x2dweb.scope/payload`,
		Name{Runtime: "libvirt", ID: "web", Path: `/machine.slice/machine-lxc\x2d4711\x2dweb.scope`}},

	{"ECS", "cgroupfs", "", "/ecs/" + task32 + "/" + id64, Name{Runtime: "docker", ID: id64}},
	{"ECS", "cgroupfs", "a task's uuid", "/ecs/" + uid + "/" + id64, Name{ID: id64}},
	{"ECS", "cgroupfs", "Fargate", "/ecs/" + task32 + "/" + task32 + "-1234567890", Name{Runtime: "containerd", ID: task32 + "-1234567890"}},
	{"ECS", "cgroupfs", "Fargate, flat", "/ecs/" + task32 + "-1234567890", Name{Runtime: "containerd", ID: task32 + "-1234567890"}},
	{"ECS", "systemd", "", "/ecstasks.slice/ecstasks-" + task32 + ".slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
	{"Talos", "cgroupfs", "podruntime", "/podruntime/kubelet", Name{Runtime: "talos", ID: "kubelet"}},
	{"Talos", "cgroupfs", "system", "/system/apid", Name{Runtime: "talos", ID: "apid"}},
	{"somebody", "systemd", "an unknown prefix", "/system.slice/engine-" + id64 + ".scope", Name{ID: id64}},
	{"somebody", "cgroupfs", "an unknown prefix", "/engine-" + id64, Name{ID: id64}},
}

// eachName runs a test for every row.
func eachName(t *testing.T, test func(t *testing.T, path string, want Name)) {
	for _, c := range named {
		t.Run(strings.Join([]string{c.engine, c.driver, c.form}, ","), func(t *testing.T) {
			c.want.Kind = KindContainer
			if c.want.Path == "" {
				c.want.Path = c.path
			}
			test(t, c.path, c.want)
		})
	}
}

func TestParsePath(t *testing.T) {
	eachName(t, func(t *testing.T, path string, want Name) {
		if got, ok := ParsePath(path); !ok || got != want {
			t.Errorf("ParsePath(%q)\n got %+v, %t\nwant %+v", path, got, ok, want)
		}
	})
}

// A process is found by the same name in each kind of machine: v2, hybrid with the v2 tree or a v1 tree, v1. The hierarchies
// have other numbers and an order of their own on each machine.
func TestEveryNameIsFoundInEveryHierarchy(t *testing.T) {
	eachName(t, func(t *testing.T, path string, want Name) {
		for kind, c := range map[string]struct{ controller, file string }{
			"v2":            {"", "0::PATH\n"},
			"hybrid":        {"", "9:name=systemd:/elsewhere\n4:cpu,cpuacct:PATH\n0::PATH\n"},
			"hybrid, by v1": {"cpu", "9:name=systemd:PATH\n4:cpu,cpuacct:PATH\n0::/\n"},
			"v1":            {"memory", "12:pids:/user.slice\n3:memory:PATH\n2:cpu,cpuacct:PATH\n1:name=systemd:/\n"},
			"v1, systemd":   {"name=systemd", "7:memory:/\n1:name=systemd:PATH\n"},
		} {
			proc := t.TempDir()
			write(t, proc, "7/cgroup", strings.ReplaceAll(c.file, "PATH", path))
			got, err := Hierarchy{Proc: proc, Controller: c.controller}.OfContainer(7, want.ID, "")
			if err != nil || got != want.Path {
				t.Errorf("%s: got %q, %v, want %q", kind, got, err, want.Path)
			}
		}
	})
}

// Whatever a container makes below its cgroup is the container's: its init, the runtime's own child, delegated cgroups, and
// engines of its own with their containers.
func TestEveryNameHoldsForWhatIsNested(t *testing.T) {
	eachName(t, func(t *testing.T, path string, want Name) {
		for _, child := range []string{
			"container", "init.scope", "payload", "worker", "system.slice/nginx.service", "user.slice/user-0.slice/session-1.scope", "docker/" + id64b,
			"system.slice/docker-" + id64b + ".scope", "default/c2", "k8s.io/" + id64b, "kubepods/burstable/pod" + uid + "/" + id64b,
			"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + uidUnit + ".slice/cri-containerd-" + id64b + ".scope",
			"kubepods.slice/kubepods-pod" + uidUnit + ".slice/crio-" + id64b + ".scope/container", "libpod_parent/libpod-" + id64b,
			"machine.slice/libpod-" + id64b + ".scope", "machine.slice/libpod-conmon-" + id64b + ".scope", "lxc.payload.inner", "lxc.monitor.inner", "lxc/inner",
			"machine.slice/systemd-nspawn@inner.service/payload", "ecs/" + task32 + "/" + id64b, id64b,
		} {
			if got, ok := ParsePath(path + "/" + child); !ok || got != want {
				t.Errorf("ParsePath(%q)\n got %+v, %t\nwant %+v", path+"/"+child, got, ok, want)
			}
		}
	})
}

func TestParsePathKnowsServices(t *testing.T) {
	for path, want := range map[string]string{
		"/system.slice/nginx.service":                                            "nginx.service",
		"/system.slice/app.slice/app-db.service/worker":                          "app-db.service",
		`/system.slice/system-getty.slice/getty@tty1.service`:                    "getty@tty1.service",
		`/system.slice/my\x2dapp.service`:                                        `my\x2dapp.service`,
		"/machine.slice/systemd-nspawn@web.service":                              "systemd-nspawn@web.service",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/editor.service": "editor.service",
	} {
		got, ok := ParsePath(path)
		if !ok || got.Kind != KindService || got.ID != want || !strings.HasPrefix(path, got.Path) {
			t.Errorf("ParsePath(%q) = %+v, %t, want service %s", path, got, ok, want)
		}
	}
}

func TestParsePathLeavesOutWhatIsNoContainer(t *testing.T) {
	for _, path := range []string{
		"", "/", "relative", "/init", "/init.scope", "/user.slice/user-0.slice/session-1.scope",
		"/docker", "/docker/buildkit", "/kubepods", "/kubepods/besteffort", "/kubepods/besteffort/pod" + uid,
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uidUnit + ".slice",
		"/kubepods/burstable/pod" + uid + "/crio-conmon-" + id64,
		"/machine.slice/libpod-conmon-" + id64 + ".scope", "/machine.slice/crio-conmon-" + id64 + ".scope",
		"/libpod_parent/libpod-conmon-" + id64, "/libpod_parent/conmon", "/libpod_parent", "/libpod_parent/" + id64, "/crio/crio-conmon-" + id64, "/crio", "/system.slice/crio-conmon-" + id64 + ".scope",
		session + "/user.slice/libpod-conmon-" + id64 + ".scope", "/system.slice/web.service/runtime", "/system.slice/libpod-conmon-" + id64 + ".scope/container",
		"/machine.slice/machine-libpod_pod_" + id64b + ".slice", session + "/user.slice/user-libpod_pod_" + id64b + ".slice", "/ecs", "/ecs/" + task32, "/ecstasks.slice",
		session + "/app.slice/run-r1.scope/lxc.monitor.web", "/podruntime", "/system", "/system.slice/containerd.service", "/kubepods.slice/kubepods-burstable.slice",
		"/lxc.monitor.web", "/lxc.monitor/web", "/lxc.pivot", "/lxc", "/lxc.payload",
		"/machine.slice/systemd-nspawn@web.service/supervisor" + "/x/../y", "/machine.slice/machine-web.scope/supervisor",
		`/machine.slice/machine-qemu\x2d1\x2dvm.scope`, "/openrc/sshd", "/system/sshd.service.d", "/mine/job", "/docker/" + id64[1:],
		"/system.slice/docker-" + id64b[:12] + ".scope", "/default", "/" + strings.Repeat("a/", 3000),
	} {
		if got, ok := ParsePath(path); ok && got.Kind == KindContainer {
			t.Errorf("ParsePath(%q) = %+v, want no container", path, got)
		}
	}
}

// A container that may make cgroups must not pass for another one.
func TestParsePathIgnoresNamesBelowAContainer(t *testing.T) {
	got, ok := ParsePath("/docker/" + id64 + "/system.slice/docker-" + id64b + ".scope")
	if !ok || got.ID != id64 || got.Path != "/docker/"+id64 {
		t.Errorf("got %+v, %t, want container %s", got, ok, id64)
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/", "/docker/" + id64, "/default/c1", "/a:b:c", "/x.slice:cri-containerd:" + id64, `/machine.slice/machine-a\x2d.scope`,
		"/system.slice/a.service", "//", "/ecs/" + task32 + "/" + task32 + "-1", "/kubepods/pod" + uid + "/x"} {
		f.Add(s)
	}
	for _, c := range named {
		f.Add(c.path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		n, ok := ParsePath(path)
		if !ok {
			if n != (Name{}) {
				t.Errorf("ParsePath(%q) = %+v, false", path, n)
			}
			return
		}
		if n.ID == "" || n.Kind == 0 || (path != n.Path && !strings.HasPrefix(path, n.Path+"/")) {
			t.Errorf("ParsePath(%q) = %+v", path, n)
		}
		if again, ok := ParsePath(n.Path); !ok || again != n {
			t.Errorf("ParsePath(%q) = %+v, but of its own path %+v, %t", path, n, again, ok)
		}
		below := n.Path + "/system.slice/docker-" + id64b + ".scope"
		if again, ok := ParsePath(below); n.Kind == KindContainer && len(below) <= 4096 && (!ok || again != n) {
			t.Errorf("ParsePath(%q) = %+v, but of what is below %+v, %t", path, n, again, ok)
		}
	})
}
