package pyroscope

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/pyroscopetest"
)

const period = 10309278 // 1e9 / 97

// cpu makes a valid CPU profile that began ago.
func cpu(t testing.TB, ago time.Duration, n int64) sink.Profile {
	t.Helper()
	start := time.Now().Add(-ago)
	f := &profile.Function{ID: 1, Name: "main.work", SystemName: "main.work", Filename: "/src/main.go"}
	m := &profile.Mapping{ID: 1, File: "/app", HasFunctions: true}
	l := &profile.Location{ID: 1, Mapping: m, Address: 0x1234, Line: []profile.Line{{Function: f, Line: 7}}}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}}, PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"},
		Period: period, TimeNanos: start.UnixNano(), DurationNanos: 10e9, Mapping: []*profile.Mapping{m}, Function: []*profile.Function{f}, Location: []*profile.Location{l},
		Sample: []*profile.Sample{{Location: []*profile.Location{l}, Value: []int64{n * period}}},
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return sink.Profile{Type: sink.CPU, Labels: sink.Labels{"service_name": "shop/cart", "node": "edge-1"}, Start: start, End: start.Add(10 * time.Second), Pprof: b.Bytes(), Total: n * period, Samples: 1}
}

// large makes a profile of a MiB before compression.
func large(t testing.TB, ago time.Duration) sink.Profile {
	t.Helper()
	out := cpu(t, ago, 1)
	p, err := profile.ParseData(out.Pprof)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(2); i < 9000; i++ {
		f := &profile.Function{ID: i, Name: fmt.Sprintf("github.com/example/shop/internal/package%d.(*Type%d).Method%d", i%97, i%31, i), Filename: "/src/main.go"}
		l := &profile.Location{ID: i, Mapping: p.Mapping[0], Address: 0x1000 + i, Line: []profile.Line{{Function: f, Line: int64(i)}}}
		p.Function, p.Location = append(p.Function, f), append(p.Location, l)
		p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: []int64{period}})
		out.Total += period
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	out.Pprof, out.Samples = b.Bytes(), len(p.Sample)
	return out
}

// client makes a client whose timeout is below what New allows, so that a hanging server does not hold up the tests.
func client(t testing.TB, cfg Config) *Client {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	c, err := newClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func send(t testing.TB, c *Client, p ...sink.Profile) []sink.Result {
	t.Helper()
	rs := c.Send(context.Background(), p)
	if len(rs) != len(p) {
		t.Fatalf("%d results for %d profiles", len(rs), len(p))
	}
	return rs
}

func TestDelivered(t *testing.T) {
	s := pyroscopetest.New(t, pyroscopetest.Options{MultiTenant: true, Prefix: "/pyroscope", Username: "u", Password: "secret"})
	c := client(t, Config{URL: s.URL() + "/", TenantID: "edge", BasicAuth: BasicAuth{Username: "u", PasswordFile: file(t, "secret\n")}, Headers: map[string]string{"X-Site": "fra1"}})
	a, b := cpu(t, time.Minute, 3), cpu(t, 2*time.Minute, 4)
	b.Tenant = "payments"
	for i, r := range send(t, c, a, b) {
		if r != (sink.Result{Outcome: sink.Delivered}) {
			t.Fatalf("profile %d: %+v", i, r)
		}
	}
	if s.Total("edge") != 3*period || s.Total("payments") != 4*period || len(s.Profiles()) != 2 {
		t.Errorf("received %d for edge and %d for payments", s.Total("edge"), s.Total("payments"))
	}
	got := s.Profiles()[0]
	if got.TypeID != "process_cpu:cpu:nanoseconds:cpu:nanoseconds" || got.Labels["service_name"] != "shop/cart" || got.Labels["node"] != "edge-1" || len(got.Labels) != 3 {
		t.Errorf("received %s %v", got.TypeID, got.Labels)
	}
	if got.Header.Get("X-Site") != "fra1" {
		t.Errorf("headers %v", got.Header)
	}
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(c.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 3 {
		t.Errorf("%d metrics, %v", len(families), err)
	}
}

func file(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEachFaultHasItsOutcome(t *testing.T) {
	for _, c := range []struct {
		name    string
		fault   pyroscopetest.Fault
		outcome sink.Outcome
		suspect bool
		after   time.Duration
		reason  string // that names the remedy
		stored  int
	}{
		{"429", pyroscopetest.Fault{Status: 429}, sink.Retry, false, 0, "ingestion_rate_mb", 0},
		{"429 with Retry-After", pyroscopetest.Fault{Status: 429, Header: map[string]string{"Retry-After": "7"}}, sink.Retry, false, 7 * time.Second, "limit", 0},
		{"500", pyroscopetest.Fault{Status: 500}, sink.Retry, true, 0, "cannot decode", 0},
		{"503", pyroscopetest.Fault{Status: 503}, sink.Retry, false, 0, "down, starting or overloaded", 0},
		{"504", pyroscopetest.Fault{Status: 504}, sink.Retry, false, 0, "overloaded", 0},
		{"502 of a proxy", pyroscopetest.Fault{Status: 502, Bare: true}, sink.Retry, false, 0, "down", 0},
		{"503 of a proxy", pyroscopetest.Fault{Status: 503, Bare: true}, sink.Retry, false, 0, "down", 0},
		{"408", pyroscopetest.Fault{Status: 408}, sink.Retry, false, 0, "uplink", 0},
		{"400", pyroscopetest.Fault{Status: 400, Message: "profile has no sample type"}, sink.Refused, false, 0, "profile has no sample type", 0},
		{"400 of a proxy", pyroscopetest.Fault{Status: 400, Bare: true}, sink.Retry, true, 0, "http or https", 0},
		{"401", pyroscopetest.Fault{Status: 401}, sink.Retry, false, 0, "pyroscope.tenant_id", 0},
		{"401 of a proxy", pyroscopetest.Fault{Status: 401, Bare: true}, sink.Retry, false, 0, "pyroscope.basic_auth", 0},
		{"403", pyroscopetest.Fault{Status: 403, Bare: true}, sink.Retry, false, 0, "may not write", 0},
		{"404", pyroscopetest.Fault{Status: 404, Bare: true}, sink.Retry, false, 0, "check pyroscope.url", 0},
		{"405", pyroscopetest.Fault{Status: 405, Bare: true}, sink.Retry, false, 0, "check pyroscope.url", 0},
		{"413", pyroscopetest.Fault{Status: 413, Bare: true}, sink.Refused, false, 0, "client_max_body_size", 0},
		{"415", pyroscopetest.Fault{Status: 415, Bare: true}, sink.Retry, false, 0, "version of the push API", 0},
		{"501", pyroscopetest.Fault{Status: 501}, sink.Retry, false, 0, "version of the push API", 0},
		{"redirect", pyroscopetest.Fault{Status: 308, Bare: true, Header: map[string]string{"Location": "https://elsewhere.example.net/"}}, sink.Retry, false, 0, "https://elsewhere.example.net/", 0},
		{"a page instead of the API", pyroscopetest.Fault{Status: 200, Bare: true}, sink.Retry, false, 0, "not a Pyroscope server's answer", 0},
		{"418", pyroscopetest.Fault{Status: 418, Bare: true}, sink.Retry, true, 0, "unexpected", 0},
		{"closed before storing", pyroscopetest.Fault{Close: true}, sink.Uncertain, false, 0, "no answer came", 0},
		{"closed after storing", pyroscopetest.Fault{Close: true, Store: true}, sink.Uncertain, false, 0, "no answer came", 1},
		{"hangs", pyroscopetest.Fault{Hang: true}, sink.Uncertain, false, 0, "no answer came", 0},
		{"stores and hangs", pyroscopetest.Fault{Hang: true, Store: true}, sink.Uncertain, false, 0, "no answer came", 1},
		{"gzipped answer", pyroscopetest.Fault{Gzip: true}, sink.Delivered, false, 0, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := pyroscopetest.New(t, pyroscopetest.Options{})
			cfg := Config{URL: s.URL()}
			if c.fault.Hang {
				cfg.Timeout = 300 * time.Millisecond // it is the end that is tested: the request arrives long before
			}
			s.Inject(c.fault, 1)
			k := client(t, cfg)
			p := cpu(t, time.Minute, 3)
			r := send(t, k, p)[0]
			if r.Outcome != c.outcome || r.Suspect != c.suspect || r.After != c.after || !strings.Contains(r.Reason, c.reason) {
				t.Errorf("got %+v, want %v, suspect %v, after %v, reason with %q", r, c.outcome, c.suspect, c.after, c.reason)
			}
			if got := len(s.Profiles()); got != c.stored {
				t.Errorf("%d profiles stored, want %d", got, c.stored)
			}
			// Whatever it was, the next push gets through.
			if r := send(t, k, cpu(t, 2*time.Minute, 3))[0]; r.Outcome != sink.Delivered {
				t.Errorf("afterwards: %+v", r)
			}
		})
	}
}

func TestRealRefusals(t *testing.T) {
	s := pyroscopetest.New(t, pyroscopetest.Options{MultiTenant: true})
	c := client(t, Config{URL: s.URL(), TenantID: "edge"})
	garbage := cpu(t, time.Minute, 3)
	garbage.Pprof = []byte("no pprof at all")
	manyLabels := cpu(t, time.Minute, 3)
	manyLabels.Labels = sink.Labels{"service_name": "x"}
	for i := range 30 {
		manyLabels.Labels["label_"+string(rune('a'+i%26))+string(rune('a'+i/26))] = "v"
	}
	badTenant := cpu(t, time.Minute, 3)
	badTenant.Tenant = "a|b"
	for _, k := range []struct {
		name    string
		p       sink.Profile
		outcome sink.Outcome
		reason  string
	}{
		{"too old", cpu(t, 61*time.Minute, 3), sink.Refused, "-validation.reject-older-than"},
		{"in the future", cpu(t, -11*time.Minute, 3), sink.Refused, "set this machine's clock"},
		{"31 labels", manyLabels, sink.Refused, "label names; limit 30"},
		{"undecodable", garbage, sink.Retry, "cannot decode this profile"},
		{"tenant that no server takes", badTenant, sink.Refused, "letters, digits"},
	} {
		r := send(t, c, k.p)[0]
		if r.Outcome != k.outcome || !strings.Contains(r.Reason, k.reason) {
			t.Errorf("%s: %+v, want %v with %q", k.name, r, k.outcome, k.reason)
		}
	}
	s.ClearViolations() // they were the point
	noTenant := client(t, Config{URL: s.URL()})
	if r := send(t, noTenant, cpu(t, time.Minute, 1))[0]; r.Outcome != sink.Retry || !strings.Contains(r.Reason, "set pyroscope.tenant_id") {
		t.Errorf("no tenant: %+v", r)
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := send(t, client(t, Config{URL: "http://" + l.Addr().String()}), cpu(t, time.Minute, 1))[0]
	if r.Outcome != sink.Retry || !strings.Contains(r.Reason, "nothing listens there") {
		t.Errorf("%+v, want retry with the remedy", r)
	}
}

// A server that takes connections and reads nothing: the request is larger than the sockets' buffers, so it is never written
// in full, and the server cannot have it.
func TestHalfWrittenIsNotUncertain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := cpu(t, time.Minute, 1)
	p.Pprof = make([]byte, 32<<20)
	if _, err := rand.Read(p.Pprof); err != nil {
		t.Fatal(err)
	}
	r := send(t, client(t, Config{URL: "http://" + l.Addr().String(), Timeout: 500 * time.Millisecond}), p)[0]
	if r.Outcome != sink.Retry || !strings.Contains(r.Reason, "not sent") {
		t.Errorf("%+v, want retry", r)
	}
}

func TestCancelledIsUncertainOnlyOnceWritten(t *testing.T) {
	s := pyroscopetest.New(t, pyroscopetest.Options{})
	c := client(t, Config{URL: s.URL()})
	ctx, cancel := context.WithCancel(context.Background())
	s.InjectFunc(func(string, map[string]string) pyroscopetest.Fault {
		cancel() // the request has arrived
		return pyroscopetest.Fault{Hang: true}
	})
	if r := c.Send(ctx, []sink.Profile{cpu(t, time.Minute, 1)})[0]; r.Outcome != sink.Uncertain {
		t.Errorf("cancelled after it was written: %+v, want uncertain", r)
	}
	if r := c.Send(ctx, []sink.Profile{cpu(t, time.Minute, 1)})[0]; r.Outcome != sink.Retry {
		t.Errorf("cancelled before: %+v, want retry", r)
	}
}

func TestTLS(t *testing.T) {
	s := pyroscopetest.New(t, pyroscopetest.Options{TLS: true, ClientCert: true})
	plain := pyroscopetest.New(t, pyroscopetest.Options{})
	ca := file(t, string(s.CertificatePEM()))
	certFile, keyFile := keyPair(t)
	good := TLS{CAFile: ca, CertFile: certFile, KeyFile: keyFile}
	for _, c := range []struct {
		name    string
		url     string
		tls     TLS
		outcome sink.Outcome
		reason  string
	}{
		{"good", s.URL(), good, sink.Delivered, ""},
		{"unknown authority", s.URL(), TLS{CertFile: certFile, KeyFile: keyFile}, sink.Retry, "pyroscope.tls.ca_file"},
		{"any authority", s.URL(), TLS{CertFile: certFile, KeyFile: keyFile, InsecureSkipVerify: true}, sink.Delivered, ""},
		{"other name", s.URL(), TLS{CAFile: ca, CertFile: certFile, KeyFile: keyFile, ServerName: "elsewhere.example.net"}, sink.Retry, "pyroscope.tls.server_name"},
		{"https to http", strings.Replace(plain.URL(), "http:", "https:", 1), TLS{}, sink.Retry, "speaks http, not https"},
	} {
		r := send(t, client(t, Config{URL: c.url, TLS: c.tls}), cpu(t, time.Minute, int64(len(c.name))))[0]
		if r.Outcome != c.outcome || !strings.Contains(r.Reason, c.reason) {
			t.Errorf("%s: %+v, want %v with %q", c.name, r, c.outcome, c.reason)
		}
	}
	// The server's alert races with our request, which may fail first.
	named := false
	for range 200 {
		r := send(t, client(t, Config{URL: s.URL(), TLS: TLS{CAFile: ca}}), cpu(t, time.Minute, 1))[0]
		if r.Outcome == sink.Delivered {
			t.Fatalf("without a client certificate: %+v", r)
		}
		if named = strings.Contains(r.Reason, "pyroscope.tls.cert_file"); named {
			break
		}
	}
	if !named {
		t.Error("no try without a client certificate named the setting")
	}
	// http to an https port: Go's server answers 400 in plain text.
	if r := send(t, client(t, Config{URL: strings.Replace(s.URL(), "https:", "http:", 1)}), cpu(t, time.Minute, 1))[0]; r.Outcome != sink.Retry || !strings.Contains(r.Reason, "http or https") {
		t.Errorf("http to https: %+v", r)
	}
}

func TestAuthorityFileIsFollowed(t *testing.T) {
	s := pyroscopetest.New(t, pyroscopetest.Options{TLS: true})
	certFile, _ := keyPair(t)
	wrong, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	ca := file(t, string(wrong))
	c := client(t, Config{URL: s.URL(), TLS: TLS{CAFile: ca}})
	if r := send(t, c, cpu(t, time.Minute, 1))[0]; r.Outcome != sink.Retry {
		t.Fatalf("wrong authority: %+v", r)
	}
	if err := os.WriteFile(ca, append(s.CertificatePEM(), '\n', '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := send(t, c, cpu(t, time.Minute, 1))[0]; r.Outcome != sink.Delivered {
		t.Errorf("after the file was mended: %+v", r)
	}
}

// keyPair writes a self-signed client certificate.
func keyPair(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agent"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))), file(t, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
}

func TestSecretsAreReadAgain(t *testing.T) {
	s := pyroscopetest.New(t, pyroscopetest.Options{Token: "new"})
	for _, cfg := range []Config{{BearerTokenFile: file(t, "old")}, {Authorization: Authorization{CredentialsFile: file(t, "old")}}} {
		cfg.URL = s.URL()
		c := client(t, cfg)
		if r := send(t, c, cpu(t, time.Minute, 1))[0]; r.Outcome != sink.Retry || !strings.Contains(r.Reason, c.secret.setting) {
			t.Errorf("old token: %+v", r)
		}
		path := c.secret.path
		// As a rotating tool does it: a new file in the place of the old one, of the same length.
		if err := os.WriteFile(path+".tmp", []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
		if r := send(t, c, cpu(t, time.Minute, 1+int64(len(path))))[0]; r.Outcome != sink.Delivered {
			t.Errorf("new token: %+v", r)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if r := send(t, c, cpu(t, time.Minute, 1))[0]; r.Outcome != sink.Retry || !strings.Contains(r.Reason, "create the file") {
			t.Errorf("no token: %+v", r)
		}
	}
}

func TestBadConfigurationsNameTheSetting(t *testing.T) {
	empty, lines := file(t, "\n"), file(t, "a\nb")
	for _, c := range []struct {
		cfg    Config
		reason string
	}{
		{Config{}, "pyroscope.url"},
		{Config{URL: "pyroscope:4040"}, "pyroscope.url"},
		{Config{URL: "ftp://x"}, "pyroscope.url"},
		{Config{URL: "http://u:p@x"}, "pyroscope.basic_auth"},
		{Config{URL: "http://x?y"}, "query"},
		{Config{URL: "http://x", Timeout: time.Second}, "pyroscope.remote_timeout"},
		{Config{URL: "http://x", TenantID: "a b"}, "pyroscope.tenant_id"},
		{Config{URL: "http://x", BearerTokenFile: "/nonexistent"}, "pyroscope.bearer_token_file"},
		{Config{URL: "http://x", BearerTokenFile: empty}, "is empty"},
		{Config{URL: "http://x", BearerTokenFile: lines}, "several lines"},
		{Config{URL: "http://x", BearerTokenFile: "/dev/zero"}, "some other file"},
		{Config{URL: "http://x", BearerTokenFile: lines, BasicAuth: BasicAuth{Username: "u"}}, "exclude"},
		{Config{URL: "http://x", Authorization: Authorization{Type: "Token"}}, "credentials_file"},
		{Config{URL: "http://x", TLS: TLS{CertFile: "x"}}, "belong together"},
		{Config{URL: "http://x", TLS: TLS{CAFile: "/nonexistent"}}, "pyroscope.tls.ca_file"},
		{Config{URL: "http://x", TLS: TLS{CAFile: lines}}, "no PEM certificate"},
		{Config{URL: "http://x", TLS: TLS{CertFile: lines, KeyFile: lines}}, "client certificate"},
	} {
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%+v: %v, want an error with %q", c.cfg, err, c.reason)
		}
	}
	c, err := New(Config{URL: "https://pyroscope.example.net:4040/base/"})
	if err != nil || c.Name() != "pyroscope.example.net:4040/base" {
		t.Errorf("name %q, %v", c.Name(), err)
	}
}

// What a server may answer, whole or cut, must end in an outcome with a reason and never in a panic.
func FuzzAnswer(f *testing.F) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write([]byte("{}"))
	w.Close()
	f.Add(200, "application/proto", "", []byte{})
	f.Add(200, "application/proto", "gzip", z.Bytes())
	f.Add(200, "application/proto", "gzip", []byte("not gzip"))
	f.Add(400, "application/json", "", []byte(`{"code":"invalid_argument","message":"outside of ingestion window (the ingestion window starts at x)"}`))
	f.Add(429, "application/json", "", []byte(`{"code":"resource_exhausted","message":1}`))
	f.Add(500, "text/html", "", []byte("<html>"))
	f.Add(999, "", "br", []byte{0xff, 0xfe})
	p := cpu(f, time.Minute, 1)
	f.Fuzz(func(t *testing.T, status int, contentType, encoding string, body []byte) {
		if status < 200 || status > 999 || strings.ContainsAny(contentType+encoding, "\r\n\x00") {
			return
		}
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			if encoding != "" {
				w.Header().Set("Content-Encoding", encoding)
			}
			w.WriteHeader(status)
			w.Write(body)
		}))
		defer s.Close()
		c := client(t, Config{URL: s.URL})
		defer c.Close()
		r := send(t, c, p)[0]
		if r.Outcome < sink.Delivered || r.Outcome > sink.Retry || (r.Outcome != sink.Delivered && r.Reason == "") {
			t.Errorf("%+v", r)
		}
		if r.Outcome == sink.Delivered && status != 200 {
			t.Errorf("status %d taken for a success", status)
		}
	})
}

// A probe tells whether pushes would be taken, and leaves nothing.
func TestProbe(t *testing.T) {
	s := pyroscopetest.New(t, pyroscopetest.Options{MultiTenant: true, Username: "u", Password: "secret"})
	good := Config{URL: s.URL(), TenantID: "edge", BasicAuth: BasicAuth{Username: "u", PasswordFile: file(t, "secret\n")}}
	if err := client(t, good).Probe(t.Context()); err != nil {
		t.Errorf("a server that takes pushes: %v", err)
	}
	wrong, nobody, path := good, good, good
	wrong.BasicAuth.PasswordFile = file(t, "guessed\n")
	nobody.URL = "http://127.0.0.1:1"
	path.URL = s.URL() + "/elsewhere"
	for what, c := range map[string]Config{"basic_auth": wrong, "refused": nobody, "pyroscope.url": path} {
		if err := client(t, c).Probe(t.Context()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := len(s.Profiles()); n != 0 {
		t.Errorf("%d profiles came of it", n)
	}
}
