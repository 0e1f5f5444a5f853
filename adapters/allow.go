package adapters

// Allow says which hosts a message's data may name, where a URL of the
// configuration has a placeholder in its host. Hosts that the configuration
// writes out are the operator's own word and are not judged.
type Allow struct {
	// Hosts are names, such as court.example.gov, or *.example.gov for all
	// names below one. A host that is not among them gets no request, and so no
	// credentials. A * alone lets data name any host; then there must be no
	// credentials to send.
	Hosts []string `yaml:"hosts"`

	// Networks are prefixes such as 10.20.0.0/16 in which those hosts may be,
	// beside the public ones. Loopback, private, link-local and metadata
	// addresses are refused at the moment of connecting unless they are in one.
	Networks []string `yaml:"networks"`
}
