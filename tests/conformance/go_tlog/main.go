// Command go_tlog checks a log made by Signet, and makes one for Signet to check, with packages that Signet has no
// part in: golang.org/x/mod/sumdb/note and tlog, and filippo.io/mldsa.
//
//	go_tlog check FOLDER < request.json   exits 0 if everything in the log and the request holds
//	go_tlog make < request.json           writes a signed head and proofs as JSON
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "check":
		err = check(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "make":
		err = produce()
	default:
		err = fmt.Errorf("usage: go_tlog check FOLDER | go_tlog make")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "go_tlog:", err)
		os.Exit(1)
	}
}

func readRequest(request any) error {
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	return decoder.Decode(request)
}
