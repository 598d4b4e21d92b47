// Command schema extracts facts about the Kubernetes API types for crates/apimachinery.
//
//	schema facts  > types.txt          what the types are
//	schema golden > golden.txt         random objects, as upstream encodes them
//	schema check SWAGGER < types.txt   compares the facts with upstream's OpenAPI document
package main

import (
	"bufio"
	"fmt"
	"os"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "schema:", err)
		os.Exit(1)
	}
}

func run() error {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	switch {
	case len(os.Args) == 2 && os.Args[1] == "facts":
		return facts(out)
	case len(os.Args) == 2 && os.Args[1] == "golden":
		return golden(out)
	case len(os.Args) == 3 && os.Args[1] == "check":
		return check(out, os.Args[2], os.Stdin)
	}
	return fmt.Errorf("usage: schema facts | golden | check SWAGGER")
}
