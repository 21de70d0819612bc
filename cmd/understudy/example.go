package main

import _ "embed"

// examplePair is a pair that a package has as an example; its manual page has it, too.
//
//go:embed example.yaml
var examplePair string
