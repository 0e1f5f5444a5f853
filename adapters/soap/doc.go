// Package soap delivers messages to a SOAP service, version 1.1 or 1.2: one POST
// with an envelope for each attempt.
//
// The envelope comes from templates in the configuration, which are read as XML
// when the adapter is made. Rendering walks their elements and writes values
// escaped, so that a value is text whatever it holds; a character that XML cannot
// carry fails the delivery as permanent.
//
// The answer is read for a fault first, whatever its HTTP status. It may be in
// either version, in UTF-8, UTF-16, ISO-8859-1 or windows-1252; a DTD, attachments
// and elements nested deeper than 64 are refused. docs/adapters/soap.md says
// what faults and statuses mean.
//
// Every attempt has the same envelope, except for the nonce and the time of creation
// of a UsernameToken. Signatures, X.509 tokens and MTOM are not supported.
package soap
