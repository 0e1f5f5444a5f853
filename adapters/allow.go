package adapters

// Allow lists the hosts that data may name. It applies to URLs with a placeholder in
// their host. A host without a placeholder is the operator's choice and is always
// allowed.
type Allow struct {
	// Hosts are names, such as court.example.gov, or *.example.gov for all names below
	// one. Any other host gets no request, and so no credentials. A single * allows any
	// host. Then the configuration must have no credentials.
	Hosts []string `yaml:"hosts" doc:"Hosts that data may name."`

	// Networks are prefixes such as 10.20.0.0/16. A host that data names may have a
	// public address, or an address in one of these networks. Other addresses
	// (loopback, private, link-local, metadata services) are refused when the
	// connection is made.
	Networks []string `yaml:"networks" pattern:"^[0-9a-fA-F.:]+/[0-9]+$" doc:"Networks, such as 10.20.0.0/16, in which a host that data names may be, in addition to public addresses."`
}
