package config

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"

	"github.com/stoker-profiler/stoker/runtime/systemd"
)

var (
	labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	// Pyroscope's own rule for a tenant; "." and ".." are refused as well.
	tenantID = regexp.MustCompile(`^[0-9a-zA-Z!_.*'()-]{1,150}$`)
	// A header name is a token of RFC 9110.
	headerName = regexp.MustCompile("^[0-9A-Za-z!#$%&'*+.^_`|~-]+$")
)

// Validate checks what no single value shows: ranges, combinations, forms. The error is Problems without places; Load adds
// them. It completes relabel rules (their naming scheme), so it wants a Config of its own.
func (c *Config) Validate() error {
	var p Problems
	bad := func(key, format string, args ...any) { p.add("", key, format, args...) }

	if f := c.Sampling.Frequency; f < 1 || f > 10_000 {
		bad("sampling.frequency", "%d is out of range; choose 1 to 10000 samples per second (97 is a good start)", f)
	}
	if w := c.Sampling.Window; w < time.Second || w > 5*time.Minute {
		bad("sampling.window", "%s is out of range; choose 1s to 5m", FormatDuration(w))
	}
	for i, r := range c.Targets {
		r.validate(elementPath("targets", i, len(c.Targets)), bad)
	}
	for i, p := range c.Systemd {
		if err := systemd.CheckPattern(p); err != nil {
			bad(elementPath("systemd", i, len(c.Systemd)), "%v", err)
		}
	}
	for i, r := range c.Relabel {
		// Pyroscope hides names that are not of the classic form.
		if err := r.Validate(model.LegacyValidation); err != nil {
			bad(elementPath("relabel_configs", i, len(c.Relabel)), "%v", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		switch value := c.Labels[name]; {
		case !labelName.MatchString(name) || strings.HasPrefix(name, "__"):
			bad("labels."+name, "%q is no label name; letters, digits and _ only, no digit first, not starting with __", name)
		case value == "":
			bad("labels."+name, "a label needs a value; Pyroscope drops empty ones")
		case len(value) > 2048:
			bad("labels."+name, "%d bytes are too long; Pyroscope takes 2048", len(value))
		}
	}

	absolute(bad, "store.path", c.Store.Path)
	if c.Store.MaxSize < 8<<20 {
		bad("store.max_size", "%s is too small; 8MiB is the least that holds a few windows", c.Store.MaxSize)
	}
	if c.Store.MaxAge < time.Minute {
		bad("store.max_age", "%s is too short; choose 1m or more", FormatDuration(c.Store.MaxAge))
	}
	if c.Store.MinFree > 0.9 {
		bad("store.min_free", "%s would leave nothing for profiles; choose at most 90%%", c.Store.MinFree)
	}

	names := map[string]int{}
	for i, e := range c.Pyroscope {
		key := elementPath("pyroscope", i, len(c.Pyroscope))
		e.validate(func(k, format string, args ...any) { bad(key+"."+k, format, args...) })
		if first, twice := names[e.Name]; twice && e.Name != "" {
			bad(key+".name", "entry %d is called %q as well; give each its own name", first+1, e.Name)
		}
		names[e.Name] = i
	}

	oneOf(bad, "unwind.python", c.Unwind.Python, Auto, Off)
	oneOf(bad, "unwind.node", c.Unwind.Node, Auto, Off)
	oneOf(bad, "unwind.ruby", c.Unwind.Ruby, Auto, Off)
	c.Symbols.Debuginfod.validate(bad)
	c.Web.validate(bad)
	absolute(bad, "socket", c.Socket)
	// The address of a unix socket has 108 bytes, the last of which is 0.
	if len(c.Socket) > 107 {
		bad("socket", "%d bytes are too long for a unix socket; the kernel takes 107", len(c.Socket))
	}

	for _, a := range c.ContainerLabels.Allow {
		if !slices.Contains([]string{"enable", "service", "frequency"}, a) {
			bad("container_labels.allow", "%q is not one of enable, service, frequency", a)
		}
	}
	for _, t := range c.ContainerLabels.Tenants {
		if !tenant(t) {
			bad("container_labels.tenants", "%q is no tenant that Pyroscope takes; at most 150 of letters, digits and !_.*'()-", t)
		}
	}
	if f := c.ContainerLabels.MaxFrequency; f < 1 || f > 10_000 {
		bad("container_labels.max_frequency", "%d is out of range; choose 1 to 10000 samples per second", f)
	}

	addresses(bad, "runtimes.containerd.address", c.Runtimes.Containerd.Address)
	addresses(bad, "runtimes.docker.address", c.Runtimes.Docker.Address)
	addresses(bad, "runtimes.podman.address", c.Runtimes.Podman.Address)
	addresses(bad, "runtimes.crio.address", c.Runtimes.CRIO.Address)
	absolute(bad, "runtimes.nri.socket", strings.TrimPrefix(c.Runtimes.NRI.Socket, "unix://"))
	if path := c.Runtimes.Hook.Socket; path != Off {
		socket(bad, "runtimes.hook.socket", path)
	}

	oneOf(bad, "log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf(bad, "log.format", c.Log.Format, "text", "json")

	slices.SortStableFunc(p, func(a, b Problem) int { return keyOrder(a.Key) - keyOrder(b.Key) })
	return p.asError()
}

// addresses checks the sockets of a runtime.
func addresses(bad func(key, format string, args ...any), key string, list []string) {
	for i, a := range list {
		at := key
		if len(list) > 1 {
			at = elementPath(key, i, len(list))
		}
		if a == Off {
			if len(list) > 1 {
				bad(at, "off stands alone; remove it or the other addresses")
			}
			continue
		}
		absolute(bad, at, strings.TrimPrefix(a, "unix://"))
	}
}

// keyOrder sorts problems as the keys are declared: maps are walked in random order.
func keyOrder(path string) int {
	path = schemaPath(path)
	keys := Keys()
	for i, k := range keys {
		if path == k.Path || strings.HasPrefix(path, k.Path+".") {
			return i
		}
	}
	return len(keys)
}

// validate checks the patterns: a malformed one would match nothing and say so to nobody.
func (r *Rule) validate(key string, bad func(key, format string, args ...any)) {
	pattern := func(key, p string) {
		if _, err := path.Match(p, ""); err != nil {
			bad(key, "%q is not a pattern: %v; write [[] for a bracket that stands for itself", p, err)
		}
	}
	pattern(key+".runtime", r.Runtime)
	pattern(key+".user", r.User)
	pattern(key+".namespace", r.Namespace)
	pattern(key+".pod", r.Pod)
	pattern(key+".name", r.Name)
	pattern(key+".image", r.Image)
	for _, name := range slices.Sorted(maps.Keys(r.Label)) {
		if name == "" {
			bad(key+".label", "a label needs a name")
		}
		pattern(key+".label."+name, r.Label[name])
	}
}

func (e *Endpoint) validate(bad func(key, format string, args ...any)) {
	u, err := url.Parse(e.URL)
	switch {
	case e.URL == "":
		bad("url", "missing; write the base URL of the server, like https://pyroscope.example.net")
	case err != nil:
		// The error repeats the URL, which may hold a password.
		bad("url", "not a URL; write it like https://pyroscope.example.net")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		bad("url", "needs http:// or https:// and a host, like https://pyroscope.example.net")
	case u.User != nil:
		bad("url", "user and password do not belong into the URL; use basic_auth with password_file")
	case u.RawQuery != "" || u.Fragment != "":
		bad("url", "the base URL has no query and no fragment; the path of the push API is added to it")
	}
	if e.TenantID != "" && !tenant(e.TenantID) {
		bad("tenant_id", "%q is no tenant that Pyroscope takes; at most 150 of letters, digits and !_.*'()-", e.TenantID)
	}
	ways := 0
	for _, set := range []bool{e.BasicAuth != (BasicAuth{}), e.BearerTokenFile != "", e.Authorization != (Authorization{})} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		bad("authorization", "choose one of basic_auth, authorization and bearer_token_file")
	}
	if e.BasicAuth != (BasicAuth{}) && e.BasicAuth.Username == "" {
		bad("basic_auth.username", "missing beside password_file")
	}
	if e.BasicAuth != (BasicAuth{}) && e.BasicAuth.PasswordFile == "" {
		bad("basic_auth.password_file", "missing beside username")
	}
	if e.Authorization.Type != "" && e.Authorization.CredentialsFile == "" {
		bad("authorization.credentials_file", "missing beside type")
	}
	for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
		switch value := e.Headers[name]; {
		case !headerName.MatchString(name) || strings.ContainsAny(value, "\r\n\x00"):
			bad("headers", "%q is no header that can be sent; a name is letters, digits and -, a value one line", name)
		case strings.EqualFold(name, "Authorization"):
			bad("headers", "Authorization is set by basic_auth or authorization, which read the secret from a file")
		case strings.EqualFold(name, "X-Scope-OrgID"):
			bad("headers", "X-Scope-OrgID is set by tenant_id")
		}
	}
	if (e.TLS.CertFile == "") != (e.TLS.KeyFile == "") {
		bad("tls", "cert_file and key_file belong together")
	}
	if e.TLS != (TLS{}) && u != nil && u.Scheme == "http" {
		bad("tls", "the URL is http; write https or remove tls")
	}
	for _, f := range []struct{ key, path string }{
		{"basic_auth.password_file", e.BasicAuth.PasswordFile},
		{"authorization.credentials_file", e.Authorization.CredentialsFile},
		{"bearer_token_file", e.BearerTokenFile},
		{"tls.ca_file", e.TLS.CAFile}, {"tls.cert_file", e.TLS.CertFile}, {"tls.key_file", e.TLS.KeyFile},
	} {
		if f.path != "" {
			absolute(bad, f.key, f.path)
		}
	}
	if e.RemoteTimeout < 10*time.Second || e.RemoteTimeout > 10*time.Minute {
		bad("remote_timeout", "%s is out of range; choose 10s to 10m (a shorter one only makes pushes uncertain that the server took)",
			FormatDuration(e.RemoteTimeout))
	}
	oneOf(bad, "uncertain", e.Uncertain, Resend, Keep)
}

func (d *Debuginfod) validate(bad func(key, format string, args ...any)) {
	for i, s := range d.URLs {
		key := "symbols.debuginfod.urls"
		if len(d.URLs) > 1 {
			key = elementPath(key, i, len(d.URLs))
		}
		switch u, err := url.Parse(s); {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			bad(key, "%q is no server; write it like https://debuginfod.example.net", s)
		case u.User != nil || u.RawQuery != "" || u.Fragment != "":
			bad(key, "the URL of a debuginfod server has no user, no query and no fragment")
		}
	}
	absolute(bad, "symbols.debuginfod.cache", d.Cache)
	if d.MaxSize < 1<<20 {
		bad("symbols.debuginfod.max_size", "%s is too small; 1MiB is the least, and most debug files need more", d.MaxSize)
	}
	if d.Timeout < time.Second || d.Timeout > time.Hour {
		bad("symbols.debuginfod.timeout", "%s is out of range; choose 1s to 1h", FormatDuration(d.Timeout))
	}
}

func (w *Web) validate(bad func(key, format string, args ...any)) {
	if w.TokenFile != "" {
		absolute(bad, "web.token_file", w.TokenFile)
	}
	for i, h := range w.Hosts {
		if h == "" || strings.ContainsAny(h, "/: \t") {
			bad(elementPath("web.hosts", i, len(w.Hosts)), "%q is no host name; write it without scheme and port", h)
		}
	}
	if w.Listen == Off {
		return
	}
	if path, ok := strings.CutPrefix(w.Listen, "unix:"); ok {
		socket(bad, "web.listen", path)
		return
	}
	host, _, err := net.SplitHostPort(w.Listen)
	if err != nil {
		bad("web.listen", "%q is no address; write host:port, unix:/path or off", w.Listen)
		return
	}
	ip := net.ParseIP(host)
	if loopback := host == "localhost" || ip != nil && ip.IsLoopback(); !loopback && w.TokenFile == "" {
		bad("web.listen", "%q can be reached from other machines; profiles tell a lot about programs: set web.token_file too", w.Listen)
	}
}

func tenant(s string) bool { return tenantID.MatchString(s) && s != "." && s != ".." }

// socket wants a path at which a unix socket can be.
func socket(bad func(key, format string, args ...any), key, path string) {
	absolute(bad, key, path)
	if len(path) > 107 {
		bad(key, "%d bytes are too long for a unix socket; the kernel takes 107", len(path))
	}
}

// absolute wants a full path: the agent's working directory is the unit file's business.
func absolute(bad func(key, format string, args ...any), key, path string) {
	switch {
	case path == "":
		bad(key, "missing; write a full path")
	case !filepath.IsAbs(path):
		bad(key, "%q is not a full path; start it with /", path)
	case strings.ContainsRune(path, 0):
		bad(key, "a path has no zero byte")
	}
}

func oneOf(bad func(key, format string, args ...any), key, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	hint := ""
	for _, a := range allowed {
		if distance(value, a) <= 2 {
			hint = fmt.Sprintf("; did you mean %q?", a)
			break
		}
	}
	bad(key, "%q is not one of %s%s", value, strings.Join(allowed, ", "), hint)
}
