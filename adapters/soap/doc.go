// Package soap delivers messages to a SOAP service, version 1.1 or 1.2: one POST
// with an envelope for each attempt.
//
// The envelope comes from templates in the configuration, which [New] reads as XML.
// Values are always escaped, so that no value becomes markup. A character that XML
// cannot have fails the delivery as permanent.
//
// An answer is first searched for a fault, with any HTTP status. It may be in either
// version, and in UTF-8, UTF-16, ISO-8859-1 or windows-1252. A DTD, attachments and
// elements that nest deeper than 64 are refused. docs/adapters/soap.md says what faults
// and statuses mean.
//
// Every attempt has the same envelope, except for the nonce and the time of creation
// of a UsernameToken. Signatures, X.509 tokens and MTOM are not supported.
package soap
