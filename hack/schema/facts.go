package main

import (
	"fmt"
	"io"
	"reflect"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/version"
)

const header = "# coxswain schema format 1: kubernetes v1.35.0"

// Meta kinds that are registered in every group version.
var everywhere = map[string]bool{
	"CreateOptions": true, "DeleteOptions": true, "GetOptions": true, "ListOptions": true,
	"PatchOptions": true, "UpdateOptions": true, "WatchEvent": true,
}

func facts(out io.Writer) error {
	all, err := kinds()
	if err != nil {
		return err
	}
	src := newSource()
	seen := map[reflect.Type]bool{}
	var queue []reflect.Type
	need := func(t reflect.Type) {
		if !seen[t] {
			seen[t] = true
			queue = append(queue, t)
		}
	}
	fmt.Fprintln(out, header)
	group := ""
	for _, k := range all {
		gv := k.gvk.GroupVersion().String()
		need(k.typ)
		if gv != group {
			group = gv
			fmt.Fprintln(out, "v", gv)
		}
		if everywhere[k.gvk.Kind] && strings.HasPrefix(modelName(k.typ), "io.k8s.apimachinery.pkg.apis.meta.v1.") {
			continue
		}
		fmt.Fprintln(out, "k", k.gvk.Kind, modelName(k.typ))
	}
	for _, k := range all {
		if everywhere[k.gvk.Kind] && k.gvk.GroupVersion().String() == "v1" {
			fmt.Fprintln(out, "e", k.gvk.Kind, modelName(k.typ))
		}
	}
	// No kind of an object, but a part of the API: the answer to /version.
	need(reflect.TypeFor[version.Info]())
	texts := map[string]string{}
	for len(queue) > 0 {
		t := queue[0]
		queue = queue[1:]
		name := modelName(t)
		text, err := message(src, t, name, need)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if old, ok := texts[name]; ok && old != text {
			return fmt.Errorf("two types are named %s", name)
		}
		texts[name] = text
	}
	names := make([]string, 0, len(texts))
	for name := range texts {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprint(out, texts[name])
	}
	return nil
}

func message(src *source, t reflect.Type, name string, need func(reflect.Type)) (string, error) {
	doc, err := src.of(t)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprint(&b, "m ", name)
	if doc.markers.get("structType") == "atomic" || doc.markers.get("mapType") == "atomic" {
		fmt.Fprint(&b, " a")
	}
	fmt.Fprintln(&b)
	for i := range t.NumField() {
		f := t.Field(i)
		if err := field(&b, src, f, doc.fields[f.Name], name, need); err != nil {
			return "", fmt.Errorf("field %s: %w", f.Name, err)
		}
	}
	return b.String(), nil
}

// field writes `name number type flags option=value...`.
func field(b *strings.Builder, src *source, f reflect.StructField, doc markers, from string, need func(reflect.Type)) error {
	tag := strings.Split(f.Tag.Get("json"), ",")
	has := func(option string) bool {
		for _, o := range tag[1:] {
			if o == option {
				return true
			}
		}
		return false
	}
	if tag[0] == "-" {
		return nil
	}
	if f.Type.Name() == "TypeMeta" && f.Anonymous {
		fmt.Fprintln(b, "kind 0 s o")
		fmt.Fprintln(b, "apiVersion 0 s o")
		return nil
	}
	number, protoName := protoTag(f.Tag.Get("protobuf"))
	jsonName := tag[0]
	t := f.Type
	flags := ""
	pointer := t.Kind() == reflect.Pointer
	if pointer {
		t = t.Elem()
	}
	typeDoc, err := src.of(t)
	if err != nil {
		return err
	}
	if pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		flags += "p"
	}
	inline := has("inline") || f.Anonymous && jsonName == ""
	// Go never leaves a struct out for omitempty, only for omitzero.
	if has("omitzero") || has("omitempty") && (pointer || t.Kind() != reflect.Struct) {
		flags += "o"
	}
	if inline {
		if pointer {
			return fmt.Errorf("inlined pointer")
		}
		flags += "n"
		if jsonName = protoName; jsonName == "" {
			jsonName = f.Name
		}
	} else if !has("omitempty") && !doc.has("optional") && jsonName != "" || doc.has("required") {
		flags += "r"
	}
	if jsonName == "" {
		return fmt.Errorf("no name in JSON")
	}
	if atomic(doc) || t.Kind() != reflect.Slice && doc.get("mapType") == "" && doc.get("structType") == "" && atomic(typeDoc.markers) {
		flags += "a"
	}
	if _, ok := reflect.New(t).Interface().(interface{ MarshalToSizedBuffer([]byte) (int, error) }); ok && t.Kind() == reflect.Slice {
		flags += "w"
	}
	if emptyCounts[from+"."+f.Name] {
		flags += "e"
	}
	if flags == "" {
		flags = "-"
	}
	fmt.Fprint(b, jsonName, " ", number, " ", typeText(t, from, need), " ", flags)
	switch list := doc.get("listType"); list {
	case "map":
		fmt.Fprint(b, " list=map:", strings.Join(doc.all("listMapKey"), ","))
	case "set":
		fmt.Fprint(b, " list=set")
	case "", "atomic":
	default:
		return fmt.Errorf("listType %q", list)
	}
	if key := f.Tag.Get("patchMergeKey"); key != "" {
		fmt.Fprint(b, " key=", key)
	}
	if patch := f.Tag.Get("patchStrategy"); patch != "" {
		fmt.Fprint(b, " patch=", patch)
	}
	if shown := shows[from+"."+f.Name]; shown != "" {
		fmt.Fprint(b, " shows=", shown)
	}
	if name := goText(t); name != "" {
		fmt.Fprint(b, " go=", name)
	}
	of := t
	if t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		of = t.Elem()
	}
	values, err := src.enum(of)
	if err != nil {
		return err
	}
	if len(values) > 0 {
		fmt.Fprint(b, " enum=", strings.Join(values, ","))
	}
	def := doc.get("default")
	if def == "" && t.Kind() != reflect.Struct {
		def = typeDoc.markers.get("default")
	}
	if def != "" {
		if def, err = src.constant(def, f, from); err != nil {
			return err
		}
		fmt.Fprint(b, " default=", def)
	}
	fmt.Fprintln(b)
	return nil
}

func atomic(m markers) bool {
	return m.get("mapType") == "atomic" || m.get("structType") == "atomic"
}

// protoTag reads the number and name of `bytes,4,opt,name=verbs`.
func protoTag(tag string) (number, name string) {
	number = "0"
	parts := strings.Split(tag, ",")
	if len(parts) < 2 {
		return number, ""
	}
	for _, p := range parts[2:] {
		if v, ok := strings.CutPrefix(p, "name="); ok {
			name = v
		}
	}
	return parts[1], name
}

// Lists of which upstream's rules ask whether they are nil, not whether they are empty.
// Read in pkg/apis/autoscaling/v2/defaults.go.
var emptyCounts = map[string]bool{
	"io.k8s.api.autoscaling.v2.HPAScalingRules.Policies": true,
}

// What the API server's conversion, not the type, gives the objects in a list: version and kind.
// Read in pkg/apis/apps/v1/conversion.go.
var shows = map[string]string{
	"io.k8s.api.apps.v1.StatefulSetSpec.VolumeClaimTemplates": "v1/PersistentVolumeClaim",
}
