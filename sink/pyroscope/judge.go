package pyroscope

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/stoker-profiler/stoker/sink"
)

// judge tells from an exchange and its error what became of the profile.
//
// Two questions decide. Was it the server that spoke? Its errors are Connect's JSON; an HTML page is a proxy's, and what a
// proxy refuses says nothing about the profile. And whose fault is it? Only what lies in the profile itself (400 from the
// server) is final; what lies in the configuration (401, 404, a redirect) is tried again until somebody mends it, for the
// profile is as good as before.
func (c *Client) judge(x seen, err error, p *sink.Profile) sink.Result {
	if err == nil {
		return sink.Result{Outcome: sink.Delivered}
	}
	if x.status == 0 {
		return c.notAnswered(x, err)
	}
	r := sink.Result{Outcome: sink.Retry, After: retryAfter(x.header, time.Now())}
	say := func(format string, args ...any) sink.Result {
		r.Reason = fmt.Sprintf("HTTP %d: %s: ", x.status, message(err)) + fmt.Sprintf(format, args...)
		return r
	}
	fromServer := connect.IsWireError(err)
	switch x.status {
	case http.StatusOK:
		if strings.HasPrefix(x.header.Get("Content-Type"), "application/proto") {
			return sink.Result{Outcome: sink.Delivered} // it said so; only the empty body behind it was cut off
		}
		return say("this is not a Pyroscope server's answer (%s): check pyroscope.url %s", x.header.Get("Content-Type"), c.cfg.URL)
	case http.StatusBadRequest:
		if !fromServer {
			r.Suspect = true
			return say("something in front of the server refused the request: check pyroscope.url %s (http or https?) and the proxy's log", c.cfg.URL)
		}
		r.Outcome, r.After = sink.Refused, 0
		if m := message(err); strings.Contains(m, "ingestion window starts at") || strings.Contains(m, "ingestion window ends at") {
			if strings.Contains(m, "ends at") {
				return say("the profile is of %s: set this machine's clock", p.Start.UTC().Format(time.RFC3339))
			}
			return say("the server takes nothing older than its -validation.reject-older-than (limits: reject_older_than, 1h by default): raise it to what store.max_age keeps")
		}
		return say("the server will not take this profile")
	case http.StatusUnauthorized:
		tenant := p.Tenant
		if tenant == "" {
			tenant = c.cfg.TenantID
		}
		if fromServer && tenant == "" {
			return say("set pyroscope.tenant_id: the server has tenants")
		}
		if fromServer {
			return say("check pyroscope.tenant_id (tenant %q was sent)", tenant)
		}
		return say("check %s", c.credentials())
	case http.StatusForbidden:
		return say("the user may not write, or not for this tenant: check %s and pyroscope.tenant_id", c.credentials())
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return say("there is no Pyroscope push API at this place: check pyroscope.url %s, a base URL without /push.v1.PusherService or /ingest", c.cfg.URL)
	case http.StatusRequestTimeout:
		return say("the server did not get the request in time: check the uplink")
	case http.StatusProxyAuthRequired:
		return say("the proxy in HTTPS_PROXY wants credentials")
	case http.StatusRequestEntityTooLarge:
		r.Outcome, r.After = sink.Refused, 0
		return say("a profile of %d bytes is too large for it: raise the limit of the server or of the proxy in front of it (nginx: client_max_body_size)", len(p.Pprof))
	case http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		return say("the server does not speak this version of the push API: check pyroscope.url %s and the server's version", c.cfg.URL)
	case http.StatusTooManyRequests:
		return say("the tenant's limit is reached (limits: ingestion_rate_mb, ingestion_burst_size_mb, or a usage limit)")
	case http.StatusInternalServerError:
		r.Suspect = true
		return say("the server is ill, or cannot decode this profile: see its log")
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return say("the server is down, starting or overloaded")
	}
	if x.status >= 300 && x.status < 400 {
		return say("the server redirects to %q: set pyroscope.url to where it lives", x.header.Get("Location"))
	}
	// Unknown answers: not taken. If it is about this very profile, others will get through.
	r.Suspect = true
	return say("unexpected answer: check pyroscope.url %s", c.cfg.URL)
}

// notAnswered judges a request without an answer: once it was written in full, the server may have it.
func (c *Client) notAnswered(x seen, err error) sink.Result {
	// In TLS 1.3 the client may have written its request before it learns that its certificate was refused: the server has
	// not read it.
	alert, refused := errors.AsType[*net.OpError](err)
	refused = refused && alert.Op == "remote error" // crypto/tls's name for an alert from the other side
	if x.written && !refused {
		return sink.Result{Outcome: sink.Uncertain, Reason: fmt.Sprintf("the request was sent and no answer came: %s", message(err))}
	}
	if refused {
		return sink.Result{Outcome: sink.Retry, Reason: fmt.Sprintf("not sent: %v: if the server wants a client certificate, set pyroscope.tls.cert_file and key_file", alert)}
	}
	return sink.Result{Outcome: sink.Retry, Reason: fmt.Sprintf("not sent: %s%s", message(err), c.connectRemedy(err))}
}

// connectRemedy says what to do about a connection that could not be made.
func (c *Client) connectRemedy(err error) string {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		roots     x509.SystemRootsError
		record    tls.RecordHeaderError
		dns       *net.DNSError
	)
	switch text := err.Error(); {
	case errors.As(err, &authority), errors.As(err, &roots):
		return ": set pyroscope.tls.ca_file to the authority that signed the server's certificate"
	case errors.As(err, &host):
		return ": set pyroscope.tls.server_name, or the name of the certificate in pyroscope.url"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return ": the server's certificate has expired or is not valid yet: renew it, and check this machine's clock"
	case errors.As(err, &invalid):
		return ": the server's certificate is not valid: see pyroscope.tls"
	case errors.As(err, &record), strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return ": the server speaks http, not https: check pyroscope.url"
	case strings.Contains(text, "malformed HTTP response"):
		return ": the server speaks https or another protocol: check pyroscope.url"
	case errors.As(err, &dns):
		return ": check the host in pyroscope.url and this machine's DNS"
	case errors.Is(err, syscall.ECONNREFUSED):
		return ": nothing listens there: start the server or check the port in pyroscope.url"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return ": no way to the server: check the network"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return ": the server did not answer in time: check the network and pyroscope.url"
	}
	return ""
}

// credentials names the setting that holds them.
func (c *Client) credentials() string {
	switch {
	case c.cfg.BasicAuth != (BasicAuth{}):
		return "pyroscope.basic_auth: username and password_file"
	case c.secret != nil:
		return c.secret.setting
	}
	return "pyroscope.basic_auth or authorization: none is set"
}

// message is the server's own words without Connect's prefix, cut to what a log line can take.
func message(err error) string {
	m := err.Error()
	if e, ok := errors.AsType[*connect.Error](err); ok {
		m = e.Message()
	}
	m = strings.Join(strings.Fields(m), " ")
	if len(m) > 500 {
		m = strings.ToValidUTF8(m[:500], "") + "…"
	}
	return m
}

// retryAfter reads the header Retry-After: seconds or a date; 0 when there is none.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseInt(v, 10, 32); err == nil && n > 0 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}
