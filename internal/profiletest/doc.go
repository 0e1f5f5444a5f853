// Package profiletest tries the profiles ecf5, hmc and hmi of docs/recipes against receivers that
// answer by published documents: the XML Schemas of OASIS ECF 5.0, read by xmllint, and the OpenAPI
// documents of HMCTS, read by libopenapi-validator. It is a module of its own, so that this library
// stays out of go.mod. testdata/SOURCES.md says where the documents are from.
package profiletest
