package cgroupfs

import (
	"path/filepath"
	"strings"
)

// maxPath is the longest path that the kernel takes, in bytes.
const maxPath = 4096

// Kind is what a cgroup's name says it holds.
type Kind uint8

const (
	// KindContainer: a container.
	KindContainer Kind = iota + 1
	// KindService: a systemd service that is no container.
	KindService
)

// Name is what a cgroup path says about whom it belongs to.
type Name struct {
	Kind Kind
	// Runtime is who makes cgroups of this form: "docker", "containerd", "cri-o", "podman", "lxc", "nspawn", "libvirt", "talos";
	// empty where several do. "systemd" for services.
	Runtime string
	// ID is the container's id, or the service's unit name.
	ID string
	// Namespace is containerd's namespace where the path has it.
	Namespace string
	// PodUID is the Kubernetes pod's uid with dashes, where the path has it.
	PodUID string
	// Unit is the systemd service that a Podman container runs in, or the service itself.
	Unit string
	// Path is the container's own cgroup: the path that was parsed, or one above it.
	Path string
}

// Named reports whether the id is the name that people gave the container, so that nobody has more to say about it.
func (n Name) Named() bool {
	return n.Kind == KindService || n.Runtime == "lxc" || n.Runtime == "nspawn" || n.Runtime == "libvirt" || n.Runtime == "talos"
}

// ParsePath tells whose cgroup it is, from its path below the root of a hierarchy. Cgroups below a container's belong to the
// container, whatever their names: those are the container's own choice, and it must not pass for another with them.
//
// Helpers of runtimes (conmon, monitors, supervisors) are nobody's: ok is false. A pod's pause container looks like any other
// here; see Scanner. What ctr runs in a namespace of a user's own choice, under a free name, cannot be told from a service
// and is not recognised: containerd's API knows it.
func ParsePath(path string) (n Name, ok bool) {
	if !strings.HasPrefix(path, "/") || len(path) > maxPath {
		return Name{}, false
	}
	parts := strings.Split(path[1:], "/")
	var service Name // the deepest service on the way, if no container is found
	for i, part := range parts {
		if helper(part) {
			return Name{}, false
		}
		if n, ok := parseContainer(parts[:i], part); ok {
			if i+1 < len(parts) && supervised(n, parts[i+1]) {
				return Name{}, false
			}
			n.Kind = KindContainer
			n.Path = "/" + strings.Join(parts[:i+1], "/")
			n.PodUID = podUID(parts[:i+1])
			if n.Runtime == "podman" {
				n.Unit = unit(parts[:i])
			}
			return n, true
		}
		if id, ok := strings.CutSuffix(part, ".service"); ok && id != "" {
			service = Name{Kind: KindService, Runtime: "systemd", ID: part, Path: "/" + strings.Join(parts[:i+1], "/")}
		}
	}
	return service, service.Kind != 0
}

// SpecPath is the cgroup that an OCI spec's cgroupsPath asks for, as a path below the root of the hierarchy: a clean absolute path as
// it is, or slice:prefix:id as a runtime with the systemd driver makes it of that (opencontainers/runc, libcontainer/cgroups/systemd):
// a-b.slice:crio:ID is /a.slice/a-b.slice/crio-ID.scope. ok is false for what is neither. Whether the runtime has made it is the
// kernel's to say.
func SpecPath(cgroupsPath string) (p string, ok bool) {
	if strings.HasPrefix(cgroupsPath, "/") {
		return cgroupsPath, filepath.Clean(cgroupsPath) == cgroupsPath && len(cgroupsPath) <= maxPath
	}
	fields := strings.Split(cgroupsPath, ":")
	if len(fields) != 3 || fields[2] == "" || strings.Contains(cgroupsPath, "/") || len(cgroupsPath) > maxPath {
		return "", false
	}
	slice, prefix, id := fields[0], fields[1], fields[2]
	if slice == "" {
		slice = "system.slice"
	}
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok {
		return "", false
	}
	p = "/"
	if name != "-" { // the root slice
		above := ""
		for part := range strings.SplitSeq(name, "-") {
			if part == "" {
				return "", false
			}
			above += part
			p = filepath.Join(p, above+".slice")
			above += "-"
		}
	}
	unit := id + ".scope"
	if prefix != "" {
		unit = prefix + "-" + unit
	}
	return filepath.Join(p, unit), true
}

// helper reports whether a cgroup holds a runtime's own process.
func helper(part string) bool {
	return strings.HasPrefix(part, "libpod-conmon-") || strings.HasPrefix(part, "crio-conmon-") || strings.HasPrefix(part, "lxc.monitor") || part == "lxc.pivot"
}

// supervised reports whether a child of a container's cgroup is the runtime's, not the container's.
func supervised(n Name, child string) bool {
	return (n.Runtime == "nspawn" || n.Runtime == "libvirt") && child == "supervisor"
}

// containerdNamespaces are those that exist without a person choosing them: ctr's and nerdctl's, the CRI plugin's, Docker's,
// BuildKit's.
var containerdNamespaces = map[string]bool{"default": true, "k8s.io": true, "moby": true, "buildkit": true}

// parseContainer tells whether the last part, below those above it, is a container's cgroup.
func parseContainer(above []string, part string) (Name, bool) {
	parent := ""
	if len(above) > 0 {
		parent = above[len(above)-1]
	}
	// The systemd driver: PREFIX-ID.scope. The literal slice:prefix:id is what a runtime with the cgroupfs driver makes of a
	// kubelet with the systemd driver.
	if scope, ok := strings.CutSuffix(part, ".scope"); ok {
		if n, ok := prefixed(scope); ok {
			return n, true
		}
		if machine, ok := strings.CutPrefix(scope, "machine-"); ok {
			return parseMachine(machine)
		}
		return Name{}, false
	}
	if fields := strings.Split(part, ":"); len(fields) == 3 && strings.HasSuffix(fields[0], ".slice") {
		return prefixed(fields[1] + "-" + fields[2])
	}
	if n, ok := prefixed(part); ok && n.Runtime != "docker" && n.Runtime != "containerd" {
		return n, true // crio-ID, libpod-ID: their cgroupfs drivers have prefixes, Docker's and containerd's have none
	}

	switch {
	case parent == "docker" && isHex(part, 64):
		return Name{Runtime: "docker", ID: part}, true
	case len(above) > 1 && above[len(above)-2] == "ecs" && isHex(parent, 32) && isHex(part, 64):
		return Name{Runtime: "docker", ID: part}, true
	case len(above) > 0 && fargate(part) && (parent == "ecs" || isHex(parent, 32)):
		return Name{Runtime: "containerd", ID: part}, true
	case isPod(above) && !strings.HasSuffix(part, ".slice") && freeName(part):
		return Name{Runtime: "containerd", ID: part}, true
	case len(above) == 1 && containerdNamespaces[parent] && freeName(part):
		return Name{Runtime: "containerd", Namespace: parent, ID: part}, true
	case len(above) == 1 && (parent == "lxc" || parent == "lxc.payload") && freeName(part):
		return Name{Runtime: "lxc", ID: part}, true
	case strings.HasPrefix(part, "lxc.payload.") && freeName(part[len("lxc.payload."):]):
		return Name{Runtime: "lxc", ID: part[len("lxc.payload."):]}, true
	case part == "payload" && strings.HasPrefix(parent, "systemd-nspawn@") && strings.HasSuffix(parent, ".service"):
		if id := unescapeUnit(parent[len("systemd-nspawn@") : len(parent)-len(".service")]); freeName(id) {
			return Name{Runtime: "nspawn", ID: id}, true
		}
	case len(above) == 1 && (parent == "podruntime" || parent == "system") && freeName(part) && !strings.Contains(part, "."):
		return Name{Runtime: "talos", ID: part}, true
	case isHex(part, 64) && parent != "libpod_parent": // a pod of Podman's has its id there, with its containers below
		return Name{ID: part}, true // below a parent of the user's own choice (docker run --cgroup-parent)
	}
	return Name{}, false
}

// prefixed tells PREFIX-ID of the systemd driver.
func prefixed(s string) (Name, bool) {
	for _, p := range []struct{ prefix, runtime string }{
		{"docker-", "docker"}, {"cri-containerd-", "containerd"}, {"nerdctl-", "containerd"}, {"crio-", "cri-o"},
		{"libpod-", "podman"}, {"libpod-payload-", "podman"},
	} {
		if id, ok := strings.CutPrefix(s, p.prefix); ok && isHex(id, 64) {
			return Name{Runtime: p.runtime, ID: id}, true
		}
	}
	// A shim or a fork with a prefix of its own.
	if i := len(s) - 65; i > 0 && s[i] == '-' && isHex(s[i+1:], 64) {
		return Name{ID: s[i+1:]}, true
	}
	return Name{}, false
}

// parseMachine tells machine-NAME.scope of systemd-machined: nspawn's, or libvirt's LXC driver's with "lxc-PID-" before the
// name. libvirt's virtual machines are registered there too and are no containers.
func parseMachine(escaped string) (Name, bool) {
	name := unescapeUnit(escaped)
	if rest, ok := strings.CutPrefix(name, "lxc-"); ok && strings.Contains(escaped, `\x2d`) {
		if pid, id, ok := strings.Cut(rest, "-"); ok && isDecimal(pid) && freeName(id) {
			return Name{Runtime: "libvirt", ID: id}, true
		}
	}
	if strings.HasPrefix(name, "qemu-") && strings.Contains(escaped, `\x2d`) || !freeName(name) {
		return Name{}, false
	}
	return Name{Runtime: "nspawn", ID: name}, true
}

// isPod reports whether the path above is that of a Kubernetes pod.
func isPod(above []string) bool {
	return len(above) > 1 && podUID(above[len(above)-1:]) != "" && kubernetes(above)
}

func kubernetes(parts []string) bool {
	for _, p := range parts {
		if p == "kubepods" || strings.HasPrefix(p, "kubepods.slice") || strings.HasPrefix(p, "kubepods-") ||
			strings.Contains(p, "-kubepods.slice") || strings.Contains(p, "-kubepods-") {
			return true
		}
	}
	return false
}

// podUID finds the pod's uid: podUID in the cgroupfs driver; …-podUID.slice, with _ for -, in the systemd driver.
func podUID(parts []string) string {
	for i := len(parts) - 1; i >= 0; i-- {
		part, _, _ := strings.Cut(parts[i], ":") // slice:prefix:id has the pod's slice in front
		part = strings.TrimSuffix(part, ".slice")
		uid, ok := strings.CutPrefix(part, "pod")
		if j := strings.LastIndex(part, "-pod"); !ok && j >= 0 {
			uid, ok = part[j+len("-pod"):], true
		}
		// A uid of a static pod is 32 hex digits, any other has four dashes.
		if uid = strings.ReplaceAll(uid, "_", "-"); ok && (isHex(uid, 32) || len(uid) == 36 && isHex(strings.ReplaceAll(uid, "-", ""), 32)) {
			return uid
		}
	}
	return ""
}

// unit is the innermost service above a container, but for the one that is a user's whole session.
func unit(above []string) string {
	for i := len(above) - 1; i >= 0; i-- {
		if strings.HasSuffix(above[i], ".service") && !strings.HasPrefix(above[i], "user@") {
			return above[i]
		}
	}
	return ""
}

// fargate tells 32 hex digits, a dash and a number.
func fargate(s string) bool {
	return len(s) > 33 && isHex(s[:32], 32) && s[32] == '-' && isDecimal(s[33:])
}

func isHex(s string, digits int) bool {
	if len(s) != digits {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isDecimal(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != "" && len(s) < 20
}

// freeName tells what containerd and LXC accept as a name: letters, digits, and -_.@ not in front.
func freeName(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case i > 0 && (c == '-' || c == '_' || c == '.' || c == '@'):
		default:
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// unescapeUnit undoes systemd's \xNN escapes.
func unescapeUnit(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if hi, lo := hexDigit(s[i+2]), hexDigit(s[i+3]); hi >= 0 && lo >= 0 {
				b.WriteByte(byte(hi<<4 | lo))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}
