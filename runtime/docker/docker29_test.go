package docker

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/runtime/registry"
)

// docker29 answers as Docker 29 does, which cannot be had on the machines that run these tests: a server over a real socket whose
// answers are written down from the sources of moby/moby v29 (module github.com/moby/moby/v2):
//
//	daemon/server/middleware/version.go             which version is refused, in which words; headers Server, Api-Version, Ostype
//	daemon/server/router/system/system_routes.go    ping, events: content type by Accept, no id, status and from since API 1.52
//	api/types/events/events.go                      Message
//	api/types/container/container.go                Summary: ImageManifestDescriptor (API 1.48), Health (1.52), HostConfig.Annotations (1.46)
type docker29 struct {
	*fake
	id string
}

func (d docker29) handle(w http.ResponseWriter, r *http.Request) bool {
	w.Header().Set("Server", "Docker/29.7.0 (linux)")
	w.Header().Set("Ostype", "linux")
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/v"); ok {
		asked, _, _ := strings.Cut(rest, "/")
		if less(asked, "1.44") {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", asked, "1.44"))
			return true
		}
		if less("1.52", asked) {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("client version %s is too new. Maximum supported API version is %s", asked, "1.52"))
			return true
		}
	}
	switch {
	case path == "/_ping":
		w.Header().Set("Cache-Control", "no-cache, no-store, must-revalidate")
		w.Header().Set("Pragma", "no-cache")
		w.Header().Set("Builder-Version", "2")
		w.Header().Set("Swarm", "inactive")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", "0")
			return true
		}
		fmt.Fprint(w, "OK")
	case strings.HasSuffix(path, "/containers/json"):
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `[{"Id":%q,"Names":["/web"],"Image":"registry.example/web:1","ImageID":"sha256:%064x","ImageManifestDescriptor":{"mediaType":`+
			`"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%064x","size":1234,"platform":{"architecture":"amd64","os":"linux"}},`+
			`"Command":"nginx -g 'daemon off;'","Created":1795000000,"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}],`+
			`"Labels":{"team":"blue"},"State":"running","Status":"Up 3 minutes (healthy)","HostConfig":{"NetworkMode":"bridge","Annotations":{"a.b/c":"d"}},`+
			`"Health":{"Status":"healthy","FailingStreak":0},"NetworkSettings":{"Networks":{"bridge":{"IPAMConfig":null,"Links":null,"Aliases":null}}},`+
			`"Mounts":[{"Type":"volume","Name":"v","Source":"","Destination":"/data","Driver":"local","Mode":"z","RW":true,"Propagation":""}]}]`+"\n", d.id, 7, 8)
	case strings.HasSuffix(path, "/events"):
		if accept := strings.Join(r.Header.Values("Accept"), ","); !strings.Contains(accept, "application/x-ndjson") {
			d.t.Errorf("events are asked for as %q; Docker 29 writes lines only to who accepts them", accept)
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		d.follow(w, r)
	default:
		return false
	}
	return true
}

// Docker 29: its newest API is spoken, and what it no longer says is not missed.
func TestDocker29(t *testing.T) {
	f, b := started(t)
	d := docker29{f, idOf(1)}
	f.with(func() { f.version, f.handle = "1.52", d.handle })
	b.run()
	b.synced()
	rec := b.State(idOf(1), registry.Waiting)
	if rec.Name != "web" || rec.Image != "registry.example/web:1" || rec.Labels["team"] != "blue" || len(rec.Labels) != 1 || !rec.Described {
		t.Errorf("record %+v", rec)
	}
	f.subscribed()
	event := func(action string, id int, more string) {
		f.line(fmt.Sprintf(`{"Type":"container","Action":%q,"Actor":{"ID":%q,"Attributes":{"image":"sha256:%064x","name":"job","team":"red"%s}},`+
			`"scope":"local","time":1795000100,"timeNano":1795000100000000001}`+"\n", action, idOf(id), 9, more))
	}
	event("create", 2, "")
	rec = b.State(idOf(2), registry.Waiting)
	if rec.Name != "job" || rec.Labels["team"] != "red" || rec.Image != "sha256:"+strings.Repeat("0", 63)+"9" {
		t.Errorf("record %+v", rec)
	}
	event("start", 2, "")
	event("die", 2, `,"execDuration":"0","exitCode":"0"`)
	b.State(idOf(2), registry.Gone)
	f.with(func() {
		for _, p := range f.paths {
			if p != "/_ping" && p != "/v1.52/events" && p != "/v1.52/containers/json" {
				t.Errorf("asked for %s", p)
			}
		}
	})
}
