package main

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/internal/config"
)

// certificate is a certificate in files, which are read again when they have changed.
type certificate struct {
	config.ListenTLS
	log *slog.Logger

	mu      sync.Mutex
	pair    *tls.Certificate
	changed [2]time.Time // of the files, when they were read last
}

// secure serves HTTPS on a listener if the configuration has a certificate.
func secure(l net.Listener, files config.ListenTLS, log *slog.Logger) net.Listener {
	if !files.Enabled() {
		return l
	}
	c := &certificate{ListenTLS: files, log: log}
	return tls.NewListener(l, &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
}

// get returns the certificate for a new connection. If the files cannot be used any more, the
// one before stays in use.
func (c *certificate) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var changed [2]time.Time
	for i, name := range []string{c.CertFile, c.KeyFile} {
		if info, err := os.Stat(name); err == nil {
			changed[i] = info.ModTime()
		}
	}
	if c.pair != nil && changed == c.changed {
		return c.pair, nil
	}
	c.changed = changed
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err == nil {
		c.pair = &pair
		return c.pair, nil
	}
	c.log.WarnContext(hello.Context(), "listen_tls: the certificate cannot be used", "cert_file", c.CertFile, "key_file", c.KeyFile, "error", err)
	if c.pair == nil {
		return nil, errors.New("there is no certificate")
	}
	return c.pair, nil
}

// onlyCertificate is for a client of this machine's own server: the server must have the
// certificate of a file. Its name does not matter, because the client connects to an address.
func onlyCertificate(file string) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection compares the certificate itself
		VerifyConnection: func(s tls.ConnectionState) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
				if bytes.Equal(block.Bytes, s.PeerCertificates[0].Raw) {
					return nil
				}
			}
			return fmt.Errorf("the server has another certificate than %s", file)
		},
	}
}
