package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
)

// openAPI is what the check reads of upstream's document.
type openAPI struct {
	Definitions map[string]struct {
		Required   []string            `json:"required"`
		Properties map[string]property `json:"properties"`
		MapType    string              `json:"x-kubernetes-map-type"`
	} `json:"definitions"`
}

type property struct {
	Ref           string    `json:"$ref"`
	Type          string    `json:"type"`
	Format        string    `json:"format"`
	Items         *property `json:"items"`
	Elements      *property `json:"additionalProperties"`
	Default       any       `json:"default"`
	ListType      string    `json:"x-kubernetes-list-type"`
	ListKeys      []string  `json:"x-kubernetes-list-map-keys"`
	MapType       string    `json:"x-kubernetes-map-type"`
	PatchStrategy string    `json:"x-kubernetes-patch-strategy"`
	PatchKey      string    `json:"x-kubernetes-patch-merge-key"`
}

// fact is a field as the data file has it.
type fact struct {
	name, typ, flags string
	options          map[string]string
}

// defaults reads the defaults, which only the documents of OpenAPI v3 show, by `message.field`.
func defaults(dir string) (map[string]any, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "v3", "*_openapi.json"))
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var doc struct {
			Components struct {
				Schemas map[string]struct {
					Properties map[string]property `json:"properties"`
				} `json:"schemas"`
			} `json:"components"`
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for name, schema := range doc.Components.Schemas {
			for field, p := range schema.Properties {
				all[name+"."+field] = p.Default
			}
		}
	}
	return all, nil
}

// check compares the facts with upstream's OpenAPI documents and reports what differs.
func check(out io.Writer, dir string, types io.Reader) error {
	declared, err := defaults(dir)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "swagger.json"))
	if err != nil {
		return err
	}
	var doc openAPI
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	facts, atomics, err := readFacts(types)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(doc.Definitions))
	for name := range doc.Definitions {
		names = append(names, name)
	}
	sort.Strings(names)
	differences, compared := 0, 0
	report := func(format string, args ...any) {
		differences++
		fmt.Fprintf(out, format+"\n", args...)
	}
	for _, name := range names {
		def := doc.Definitions[name]
		if _, ok := facts[name]; !ok {
			if len(def.Properties) > 0 {
				report("%s: not in the facts", name)
			}
			continue
		}
		if (def.MapType == "atomic") != atomics[name] {
			report("%s: map type %q", name, def.MapType)
		}
		fields := flatten(facts, name)
		required := map[string]bool{}
		for _, r := range def.Required {
			required[r] = true
		}
		for _, f := range fields {
			p, ok := def.Properties[f.name]
			if !ok {
				report("%s.%s: not in the document", name, f.name)
				continue
			}
			compared++
			p.Default = declared[name+"."+f.name]
			for _, d := range compare(f, p, required[f.name], name) {
				report("%s.%s: %s", name, f.name, d)
			}
			delete(def.Properties, f.name)
		}
		for extra := range def.Properties {
			report("%s.%s: not in the facts", name, extra)
		}
	}
	fmt.Fprintf(out, "%d fields compared, %d differences\n", compared, differences)
	return nil
}

func readFacts(types io.Reader) (map[string][]fact, map[string]bool, error) {
	facts, atomics, message := map[string][]fact{}, map[string]bool{}, ""
	lines := bufio.NewScanner(types)
	for lines.Scan() {
		line, def, hasDefault := strings.Cut(lines.Text(), " default=")
		words := strings.Split(line, " ")
		switch words[0] {
		case "#", "v", "k", "e":
		case "m":
			message = words[1]
			facts[message] = nil
			atomics[message] = len(words) > 2
		default:
			f := fact{words[0], words[2], words[3], map[string]string{}}
			for _, o := range words[4:] {
				key, value, _ := strings.Cut(o, "=")
				f.options[key] = value
			}
			if hasDefault {
				f.options["default"] = def
			}
			facts[message] = append(facts[message], f)
		}
	}
	return facts, atomics, lines.Err()
}

// flatten gives the fields of a message's JSON object.
func flatten(facts map[string][]fact, name string) (all []fact) {
	for _, f := range facts[name] {
		if strings.Contains(f.flags, "n") {
			all = append(all, flatten(facts, absolute(f.typ, name))...)
		} else {
			all = append(all, f)
		}
	}
	return all
}

func absolute(typ, from string) string {
	if strings.HasPrefix(typ, ".") {
		return from[:strings.LastIndex(from, ".")] + typ
	}
	return typ
}

func compare(f fact, p property, required bool, from string) (differences []string) {
	differ := func(what string, ours, theirs any) {
		if !reflect.DeepEqual(ours, theirs) {
			differences = append(differences, fmt.Sprintf("%s: %v, in the document %v", what, ours, theirs))
		}
	}
	differ("required", strings.Contains(f.flags, "r"), required)
	if want, ok := openAPIType(f.typ, from); ok {
		differ("type", want, describe(p))
	}
	if strings.HasPrefix(f.typ, "[]") {
		list, keys := "atomic", []string(nil)
		if value, ok := f.options["list"]; ok {
			kind, names, found := strings.Cut(value, ":")
			list = kind
			if found {
				keys = strings.Split(names, ",")
			}
		}
		if p.ListType == "" {
			p.ListType = "atomic"
		}
		differ("list type", list, p.ListType)
		differ("list keys", keys, p.ListKeys)
	}
	if p.Ref == "" && !strings.HasPrefix(f.typ, "[]") {
		differ("atomic", strings.Contains(f.flags, "a"), p.MapType == "atomic")
	}
	differ("patch strategy", f.options["patch"], p.PatchStrategy)
	differ("patch merge key", f.options["key"], p.PatchKey)
	ours := any(nil)
	if text, ok := f.options["default"]; ok {
		if err := json.Unmarshal([]byte(text), &ours); err != nil {
			differences = append(differences, err.Error())
		}
	}
	// Upstream's generator shows Go's zero value as the default of fields that are always there.
	if ours == nil && (p.Default == "" || p.Default == 0.0 || p.Default == false || reflect.DeepEqual(p.Default, map[string]any{})) {
		p.Default = nil
	}
	differ("default", ours, p.Default)
	return differences
}

func describe(p property) string {
	switch {
	case p.Items != nil:
		return "[]" + describe(*p.Items)
	case p.Elements != nil:
		return "{}" + describe(*p.Elements)
	case p.Ref != "":
		return strings.TrimPrefix(p.Ref, "#/definitions/")
	}
	return strings.TrimSuffix(p.Type+"/"+p.Format, "/")
}

// openAPIType is how the document describes a type; special ones that it has as messages of no
// fields are named by it.
func openAPIType(typ, from string) (string, bool) {
	for _, prefix := range []string{"[]", "{}"} {
		if elem, ok := strings.CutPrefix(typ, prefix); ok {
			inner, ok := openAPIType(elem, from)
			return prefix + inner, ok
		}
	}
	meta := "io.k8s.apimachinery.pkg.apis.meta.v1."
	switch typ {
	case "b":
		return "boolean", true
	case "i":
		return "integer/int32", true
	case "l":
		return "integer/int64", true
	case "d":
		return "number/double", true
	case "s":
		return "string", true
	case "y":
		return "string/byte", true
	case "Q":
		return "io.k8s.apimachinery.pkg.api.resource.Quantity", true
	case "I":
		return "io.k8s.apimachinery.pkg.util.intstr.IntOrString", true
	case "T":
		return meta + "Time", true
	case "U":
		return meta + "MicroTime", true
	case "D":
		return meta + "Duration", true
	case "F":
		return meta + "FieldsV1", true
	case "R":
		return "io.k8s.apimachinery.pkg.runtime.RawExtension", true
	}
	return absolute(typ, from), strings.Contains(typ, ".")
}
