package adapters

// TLS says which certificates an adapter trusts and which one it shows. The lowest
// version is TLS 1.2. The zero value trusts the system's authorities and shows no
// certificate.
type TLS struct {
	// CAFile is a PEM file of the only authorities to trust. An adapter reads it once;
	// lockstep run makes new adapters when it has changed. Default: the system's
	// authorities.
	CAFile string `yaml:"ca_file" check:"file" doc:"Certificates to trust, in PEM. Default: those of the system."`

	// CertFile and KeyFile are the PEM files of the client certificate, leaf first, and
	// of its key. After a change of the files, the next connection reads them again, so
	// a renewed certificate needs no restart. Default: no client certificate.
	CertFile string `yaml:"cert_file" with:"key_file" doc:"Client certificate, in PEM."`
	KeyFile  string `yaml:"key_file" with:"cert_file" doc:"Its private key, in PEM."`
}
