package pyroscope

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"
	"time"
)

// transport is an http.RoundTripper that follows its certificate files and tells what happened to each request.
type transport struct {
	tls TLS

	mu     sync.Mutex // guards what follows
	ca     stamp
	inner  *http.Transport
	client tls.Certificate
	cert   [2]stamp
}

func newTransport(cfg TLS) (*transport, error) {
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return nil, errors.New("pyroscope.tls: cert_file and key_file belong together")
	}
	t := &transport{tls: cfg}
	if _, err := t.get(); err != nil {
		return nil, err
	}
	if cfg.CertFile != "" {
		if _, err := t.certificate(nil); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// get returns the transport, a new one when ca_file has changed.
func (t *transport) get() (*http.Transport, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var at stamp
	if t.tls.CAFile != "" {
		var err error
		if at, err = stampOf(t.tls.CAFile); err != nil {
			return nil, fmt.Errorf("pyroscope.tls.ca_file: %w: create it or take the setting away", err)
		}
	}
	if t.inner != nil && at == t.ca {
		return t.inner, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.tls.ServerName, InsecureSkipVerify: t.tls.InsecureSkipVerify}
	if t.tls.CAFile != "" {
		pem, err := os.ReadFile(t.tls.CAFile)
		if err != nil {
			return nil, fmt.Errorf("pyroscope.tls.ca_file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("pyroscope.tls.ca_file %s contains no PEM certificate", t.tls.CAFile)
		}
	}
	if t.tls.CertFile != "" {
		cfg.GetClientCertificate = t.certificate
	}
	if t.inner != nil {
		t.inner.CloseIdleConnections()
	}
	t.ca = at
	t.inner = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       cfg,
		TLSHandshakeTimeout:   10 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   32,
		MaxConnsPerHost:       64,
		ExpectContinueTimeout: time.Second,
		// Shorter than servers and proxies keep theirs (a minute and more): a request that goes out on a connection
		// just closed by the other side is a doubt.
		IdleConnTimeout: 30 * time.Second,
	}
	return t.inner, nil
}

// certificate returns the client certificate, read again when its files have changed.
func (t *transport) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	var at [2]stamp
	for i, f := range []string{t.tls.CertFile, t.tls.KeyFile} {
		var err error
		if at[i], err = stampOf(f); err != nil {
			return nil, fmt.Errorf("pyroscope.tls: client certificate: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if at != t.cert {
		c, err := tls.LoadX509KeyPair(t.tls.CertFile, t.tls.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("pyroscope.tls: client certificate %s: %w", t.tls.CertFile, err)
		}
		t.client, t.cert = c, at
	}
	return &t.client, nil
}

func (t *transport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inner != nil {
		t.inner.CloseIdleConnections()
	}
}

// exchange is what is known of one request beside its error.
type exchange struct {
	mu      sync.Mutex
	written bool // the whole request went out
	status  int
	header  http.Header
}

// seen is a copy to look at: a transport may still touch the exchange when the caller has given up.
type seen struct {
	written bool
	status  int
	header  http.Header
}

func (x *exchange) seen() seen {
	x.mu.Lock()
	defer x.mu.Unlock()
	return seen{x.written, x.status, x.header}
}

type exchangeKey struct{}

// observe returns a context whose request is watched, and what is seen of it.
func observe(ctx context.Context) (context.Context, *exchange) {
	x := &exchange{}
	ctx = context.WithValue(ctx, exchangeKey{}, x)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(i httptrace.WroteRequestInfo) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.written = i.Err == nil
	}}), x
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	inner, err := t.get()
	if err != nil {
		return nil, err
	}
	res, err := inner.RoundTrip(r)
	if x, ok := r.Context().Value(exchangeKey{}).(*exchange); ok && res != nil {
		x.mu.Lock()
		x.status, x.header = res.StatusCode, res.Header
		x.mu.Unlock()
	}
	return res, err
}
