// Package placeholder fills the placeholders of a configuration's texts, such as {key}
// and {fields.court.code} in a URL or a header, with values of a message.
//
// The caller says how its text escapes values. A missing value is an error, which names
// the placeholder. No error shows a value.
package placeholder
