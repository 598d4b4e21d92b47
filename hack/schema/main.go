// Command schema extracts facts about the Kubernetes API types for crates/apimachinery.
//
//	schema facts  > types.txt          what the types are
//	schema golden > golden.txt         random objects, as upstream encodes them
//	schema decodings > decodings.txt   what upstream's strict decoder makes of changed objects
//	schema check DIR < types.txt   compares the facts with the OpenAPI documents in upstream's
//	                               api/openapi-spec
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
	case len(os.Args) == 2 && os.Args[1] == "decodings":
		return decodings(out)
	case len(os.Args) == 3 && os.Args[1] == "check":
		return check(out, os.Args[2], os.Stdin)
	}
	return fmt.Errorf("usage: schema facts | golden | decodings | check DIR")
}
