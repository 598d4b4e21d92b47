package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"reflect"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
)

// decodings writes what upstream's strict decoder makes of objects that were changed at random:
// a line with apiVersion and kind, the JSON, `ok`, `strict ERROR` or `error ERROR`, and the object
// that was decoded (`-` if none).
func decodings(out io.Writer) error {
	all, err := kinds()
	if err != nil {
		return err
	}
	s, err := newScheme()
	if err != nil {
		return err
	}
	decoder := jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, s, s,
		jsonserializer.SerializerOptions{Strict: true})
	written := map[reflect.Type]bool{}
	for n, k := range all {
		if written[k.typ] || strings.HasSuffix(k.gvk.Kind, "List") || everywhere[k.gvk.Kind] {
			continue
		}
		written[k.typ] = true
		for round := range 6 {
			f := filler{rand.New(rand.NewSource(int64(n*100 + round))), 0.6, false}
			v := reflect.New(k.typ)
			f.fill(v.Elem(), 2)
			v.Interface().(runtime.Object).GetObjectKind().SetGroupVersionKind(k.gvk)
			text, err := json.Marshal(v.Interface())
			if err != nil {
				return err
			}
			var tree any
			if err := json.Unmarshal(text, &tree); err != nil {
				return err
			}
			// Numbers beyond 2^53 are not the point here.
			p := perturber{filler: f, left: 1 + f.Intn(2)}
			p.chance = 3.0 / float64(1+count(tree))
			var input strings.Builder
			p.write(&input, tree, true)
			obj, _, err := decoder.Decode([]byte(input.String()), &k.gvk, nil)
			result, decoded := "ok", []byte("-")
			switch {
			case runtime.IsStrictDecodingError(err):
				result = "strict " + err.Error()
			case err != nil:
				result, obj = "error "+err.Error(), nil
			}
			if obj != nil {
				if decoded, err = json.Marshal(obj); err != nil {
					return err
				}
			}
			fmt.Fprintf(out, "%s %s\n%s\n%s\n%s\n", k.gvk.GroupVersion(), k.gvk.Kind, input.String(), strings.ReplaceAll(result, "\n", " "), decoded)
		}
	}
	return nil
}

func count(v any) int {
	n := 1
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			n += count(e)
		}
	case []any:
		for _, e := range v {
			n += count(e)
		}
	}
	return n
}

// perturber writes JSON with a few changes.
type perturber struct {
	filler
	chance float64
	left   int
}

func (p *perturber) hit() bool {
	if p.left > 0 && p.Float64() < p.chance {
		p.left--
		return true
	}
	return false
}

func (p *perturber) odd() string {
	odd := []string{`null`, `"x"`, `""`, `1`, `1.5`, `-1`, `3000000000`, `99999999999999999999`, `true`, `[]`, `{}`,
		`[1]`, `{"a":1}`, `"2024-02-30T00:00:00Z"`, `"1h"`, `"2024-01-01T00:00:00+01:00"`, `[null]`, `{"a":null}`, `"1500m"`}
	return odd[p.Intn(len(odd))]
}

func (p *perturber) write(b *strings.Builder, v any, root bool) {
	if !root && p.hit() {
		b.WriteString(p.odd())
		return
	}
	switch v := v.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for key := range v {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		b.WriteByte('{')
		for i, key := range keys {
			if i > 0 {
				b.WriteByte(',')
			}
			name, _ := json.Marshal(key)
			if root && (key == "kind" || key == "apiVersion") {
				fmt.Fprintf(b, "%s:%q", name, v[key])
				continue
			}
			switch {
			case p.hit() && p.Intn(2) == 0:
				fmt.Fprintf(b, "%s:", strings.ToUpper(string(name)))
			case p.left > 0 && p.hit():
				fmt.Fprintf(b, "%s:", name)
				p.write(b, v[key], false)
				fmt.Fprintf(b, ",%s:", name)
			default:
				fmt.Fprintf(b, "%s:", name)
			}
			p.write(b, v[key], false)
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			p.write(b, e, false)
		}
		b.WriteByte(']')
	case float64:
		if v == float64(int64(v)) {
			fmt.Fprintf(b, "%d", int64(v))
			return
		}
		text, _ := json.Marshal(v)
		b.Write(text)
	default:
		text, _ := json.Marshal(v)
		b.Write(text)
	}
}
