package cgroupfs

import (
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

// One row per form of docs on how engines name cgroups, with the cgroupfs and the systemd driver.
func TestParsePath(t *testing.T) {
	besteffort := "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uidUnit + ".slice"
	rootless := "/user.slice/user-1000.slice/user@1000.service/user.slice"
	for _, c := range []struct {
		name, path string
		want       Name // Kind and, where empty, Path are filled in
	}{
		{"docker cgroupfs", "/docker/" + id64, Name{Runtime: "docker", ID: id64}},
		{"docker systemd", "/system.slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
		{"docker rootless", rootless + "/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
		{"docker cgroup-parent", "/batch/" + id64, Name{ID: id64}},
		{"docker cgroup-parent slice", "/batch.slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
		{"docker in docker", "/docker/" + id64 + "/docker/" + id64b, Name{Runtime: "docker", ID: id64, Path: "/docker/" + id64}},
		{"ctr", "/default/c1", Name{Runtime: "containerd", Namespace: "default", ID: "c1"}},
		{"ctr in k8s.io", "/k8s.io/my_job.2", Name{Runtime: "containerd", Namespace: "k8s.io", ID: "my_job.2"}},
		{"nerdctl cgroupfs", "/default/" + id64, Name{Runtime: "containerd", Namespace: "default", ID: id64}},
		{"nerdctl systemd", "/system.slice/nerdctl-" + id64 + ".scope", Name{Runtime: "containerd", ID: id64}},
		{"CRI guaranteed", "/kubepods/pod" + uid + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
		{"CRI burstable", "/kubepods/burstable/pod" + uid + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
		{"CRI besteffort", "/kubepods/besteffort/pod" + uid + "/main", Name{Runtime: "containerd", ID: "main", PodUID: uid}},
		{"CRI static pod", "/kubepods/burstable/pod" + task32 + "/" + id64, Name{Runtime: "containerd", ID: id64, PodUID: task32}},
		{"CRI systemd", besteffort + "/cri-containerd-" + id64 + ".scope", Name{Runtime: "containerd", ID: id64, PodUID: uid}},
		{"CRI systemd in kind", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + uidUnit + ".slice/cri-containerd-" + id64 + ".scope",
			Name{Runtime: "containerd", ID: id64, PodUID: uid}},
		{"CRI, only the kubelet uses systemd", "/system.slice/containerd.service/kubepods-besteffort-pod" + uidUnit + ".slice:cri-containerd:" + id64,
			Name{Runtime: "containerd", ID: id64, PodUID: uid}},
		{"CRI, literal at the root", "/kubepods-besteffort-pod" + uidUnit + ".slice:cri-containerd:" + id64, Name{Runtime: "containerd", ID: id64, PodUID: uid}},
		{"CRI-O cgroupfs", "/kubepods/burstable/pod" + uid + "/crio-" + id64, Name{Runtime: "cri-o", ID: id64, PodUID: uid}},
		{"CRI-O systemd", besteffort + "/crio-" + id64 + ".scope", Name{Runtime: "cri-o", ID: id64, PodUID: uid}},
		{"CRI-O with crun", besteffort + "/crio-" + id64 + ".scope/container",
			Name{Runtime: "cri-o", ID: id64, PodUID: uid, Path: besteffort + "/crio-" + id64 + ".scope"}},
		{"Podman cgroupfs", "/libpod_parent/libpod-" + id64, Name{Runtime: "podman", ID: id64}},
		{"Podman systemd", "/machine.slice/libpod-" + id64 + ".scope", Name{Runtime: "podman", ID: id64}},
		{"Podman with crun", "/machine.slice/libpod-" + id64 + ".scope/container",
			Name{Runtime: "podman", ID: id64, Path: "/machine.slice/libpod-" + id64 + ".scope"}},
		{"Podman pod", "/machine.slice/machine-libpod_pod_" + id64b + ".slice/libpod-" + id64 + ".scope", Name{Runtime: "podman", ID: id64}},
		{"Podman Quadlet", "/system.slice/web.service/libpod-payload-" + id64, Name{Runtime: "podman", ID: id64, Unit: "web.service"}},
		{"Podman rootless", rootless + "/libpod-" + id64 + ".scope", Name{Runtime: "podman", ID: id64}},
		{"LXC 2", "/lxc/web", Name{Runtime: "lxc", ID: "web"}},
		{"LXC 2, nested", "/lxc/web/init.scope", Name{Runtime: "lxc", ID: "web", Path: "/lxc/web"}},
		{"LXC 3", "/lxc.payload/web", Name{Runtime: "lxc", ID: "web"}},
		{"LXC 4", "/lxc.payload.web", Name{Runtime: "lxc", ID: "web"}},
		{"Incus", "/lxc.payload.project_web/system.slice/nginx.service", Name{Runtime: "lxc", ID: "project_web", Path: "/lxc.payload.project_web"}},
		{"nspawn", "/machine.slice/systemd-nspawn@web.service/payload", Name{Runtime: "nspawn", ID: "web"}},
		{"nspawn, escaped", `/machine.slice/systemd-nspawn@my\x2dweb.service/payload`, Name{Runtime: "nspawn", ID: "my-web"}},
		{"nspawn, nested", "/machine.slice/systemd-nspawn@web.service/payload/system.slice/a.service",
			Name{Runtime: "nspawn", ID: "web", Path: "/machine.slice/systemd-nspawn@web.service/payload"}},
		{"machined", "/machine.slice/machine-web.scope", Name{Runtime: "nspawn", ID: "web"}},
		{"machined, nested", "/machine.slice/machine-web.scope/payload", Name{Runtime: "nspawn", ID: "web", Path: "/machine.slice/machine-web.scope"}},
		{"libvirt LXC", `/machine.slice/machine-lxc\x2d4711\x2dweb\x2d1.scope`, Name{Runtime: "libvirt", ID: "web-1"}},
		{"ECS", "/ecs/" + task32 + "/" + id64, Name{Runtime: "docker", ID: id64}},
		{"ECS on Fargate", "/ecs/" + task32 + "/" + task32 + "-1234567890", Name{Runtime: "containerd", ID: task32 + "-1234567890"}},
		{"ECS systemd", "/ecstasks.slice/ecstasks-" + task32 + ".slice/docker-" + id64 + ".scope", Name{Runtime: "docker", ID: id64}},
		{"Talos podruntime", "/podruntime/kubelet", Name{Runtime: "talos", ID: "kubelet"}},
		{"Talos system", "/system/apid", Name{Runtime: "talos", ID: "apid"}},
		{"an unknown prefix", "/system.slice/engine-" + id64 + ".scope", Name{ID: id64}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Kind = KindContainer
			if c.want.Path == "" {
				c.want.Path = c.path
			}
			got, ok := ParsePath(c.path)
			if !ok || got != c.want {
				t.Errorf("ParsePath(%q)\n got %+v, %t\nwant %+v", c.path, got, ok, c.want)
			}
		})
	}
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
		"/libpod_parent/libpod-conmon-" + id64, "/libpod_parent/conmon", "/libpod_parent",
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
	})
}
