package exchange

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// TLSConfig returns the configuration of connections for o. A protocol that is not HTTP uses
// it too: set its ServerName, or leave that to [tls.Dialer]. The error names every wrong
// field.
func TLSConfig(o adapters.TLS) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var errs []error
	if o.CAFile != "" {
		pem, err := readPEM(o.CAFile)
		switch config.RootCAs = x509.NewCertPool(); {
		case err != nil:
			errs = append(errs, fmt.Errorf("tls.ca_file: %w", err))
		case !config.RootCAs.AppendCertsFromPEM(pem):
			errs = append(errs, fmt.Errorf("tls.ca_file: %s has no PEM certificate", o.CAFile))
		}
	}
	show := func() (*tls.Certificate, error) { return new(tls.Certificate), nil } // none
	switch {
	case o.CertFile == "" && o.KeyFile == "":
	case o.CertFile == "":
		errs = append(errs, errors.New("tls.cert_file: is missing, but tls.key_file is set: set both or none"))
	case o.KeyFile == "":
		errs = append(errs, errors.New("tls.key_file: is missing, but tls.cert_file is set: set both or none"))
	default:
		pair := &keyPair{certFile: o.CertFile, keyFile: o.KeyFile}
		if _, err := pair.current(); err != nil {
			errs = append(errs, fmt.Errorf("tls.cert_file, tls.key_file: %w", err))
		}
		show = pair.current
	}
	config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if p, ok := asked.Context().Value(progressKey{}).(*progress); ok {
			p.asked.Store(true)
		}
		return show()
	}
	return config, errors.Join(errs...)
}

// maxPEM bounds a file of certificates or a key, in bytes. The authorities of a
// whole system take about 200 KiB.
const maxPEM = 1 << 20

func readPEM(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(b) > maxPEM {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxPEM)
	}
	return bytes.TrimPrefix(b, []byte("\uFEFF")), err // encoding/pem does not know the byte-order mark of editors
}

// keyPair is a client certificate that follows its files.
type keyPair struct {
	certFile, keyFile string

	mu   sync.Mutex
	read [2]stamp // of the files that cert was read from
	cert *tls.Certificate
}

// stamp shows that a file has changed, without reading the file.
type stamp struct {
	modified time.Time
	size     int64
}

// current returns the certificate that is now in the files. If the two files do not
// match, because they are being replaced, it returns the last one.
func (p *keyPair) current() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.refresh(); err != nil && p.cert == nil {
		return nil, err
	}
	return p.cert, nil
}

// refresh reads the files if they have changed.
func (p *keyPair) refresh() error {
	var now [2]stamp
	for i, name := range []string{p.certFile, p.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		now[i] = stamp{modified: info.ModTime(), size: info.Size()}
	}
	if p.cert != nil && now == p.read {
		return nil
	}
	certPEM, err := readPEM(p.certFile)
	if err != nil {
		return err
	}
	keyPEM, err := readPEM(p.keyFile)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil {
		p.cert, p.read = &cert, now
	}
	return err
}
