package adapters

// TLS says how an adapter trusts a receiver and shows itself to it. TLS 1.2 is
// the lowest version spoken. The zero value trusts the system's authorities
// and shows no certificate.
type TLS struct {
	// CAFile is a PEM file of the only authorities to trust. It is read once.
	// Default: the system's authorities.
	CAFile string `yaml:"ca_file"`

	// CertFile and KeyFile are the PEM files of the client certificate, leaf
	// first, and of its key. They are read again for the next connection after
	// one of them changed, so a renewed certificate needs no restart.
	// Default: no client certificate.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}
