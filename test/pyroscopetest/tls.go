package pyroscopetest

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
)

// quiet keeps the net/http server from writing about connections that tests cut on purpose.
var quiet = log.New(io.Discard, "", 0)

func tlsConfig(clientCert bool) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if clientCert {
		c.ClientAuth = tls.RequireAnyClientCert
	}
	return c
}

// CertificatePEM returns the server's own certificate (for 127.0.0.1 and example.com), which a client can use as its ca_file.
func (s *Server) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
}
