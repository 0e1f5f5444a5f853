// Package placeholder fills texts of a configuration, such as a URL's path or a
// header's value, with what a message says: {key}, {fields.court.code}.
//
// The caller says how values are escaped in its text. A value that is not known is an
// error that names its placeholder and never shows a value.
package placeholder
