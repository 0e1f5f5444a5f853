package adapters

// Allow says which hosts a message's data may name, where a URL of the
// configuration has a placeholder in its host. Hosts without a placeholder are the
// operator's choice and are not judged.
type Allow struct {
	// Hosts are names, such as court.example.gov, or *.example.gov for all names below
	// one. Any other host gets no request, and so no credentials. A * alone lets data
	// name any host; then the configuration must have no credentials to send.
	Hosts []string `yaml:"hosts"`

	// Networks are prefixes such as 10.20.0.0/16 in which those hosts may be. Public
	// addresses are always allowed. Loopback, private, link-local and metadata
	// addresses are refused at the moment of connecting unless they are in one.
	Networks []string `yaml:"networks"`
}
