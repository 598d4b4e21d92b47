package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"reflect"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// marshaler is what generated protobuf code gives a type.
type marshaler interface{ Marshal() ([]byte, error) }

type unmarshaler interface{ Unmarshal([]byte) error }

// golden writes, for each kind, an empty object, a sparse and a dense one: a line with
// apiVersion and kind, its JSON, and its protobuf in hexadecimal (`-` where it has none).
func golden(out io.Writer) error {
	all, err := kinds()
	if err != nil {
		return err
	}
	written := map[reflect.Type]bool{}
	for n, k := range all {
		if written[k.typ] {
			continue
		}
		written[k.typ] = true
		for round, chance := range []float64{0, 0.5, 0.9} {
			f := filler{rand.New(rand.NewSource(int64(n*10 + round))), chance, false}
			v := reflect.New(k.typ)
			f.fill(v.Elem(), 0)
			obj := v.Interface()
			o, ok := obj.(runtime.Object)
			if !ok {
				return fmt.Errorf("%s is no object", k.gvk)
			}
			o.GetObjectKind().SetGroupVersionKind(k.gvk)
			proto := "-"
			if m, ok := obj.(marshaler); ok {
				raw, err := m.Marshal()
				if err != nil {
					return fmt.Errorf("%s: %w", k.gvk, err)
				}
				// What is read back is what upstream shows: nil and empty may differ.
				read := reflect.New(k.typ).Interface()
				if err := read.(unmarshaler).Unmarshal(raw); err != nil {
					return fmt.Errorf("%s: %w", k.gvk, err)
				}
				if raw, err = read.(marshaler).Marshal(); err != nil {
					return fmt.Errorf("%s: %w", k.gvk, err)
				}
				read.(runtime.Object).GetObjectKind().SetGroupVersionKind(k.gvk)
				obj, proto = read, hex.EncodeToString(raw)
			}
			text, err := json.Marshal(obj)
			if err != nil {
				return fmt.Errorf("%s: %w", k.gvk, err)
			}
			fmt.Fprintf(out, "%s %s\n%s\n%s\n", k.gvk.GroupVersion(), k.gvk.Kind, text, proto)
		}
	}
	return nil
}

// filler fills values at random; chance says how likely a field is to be set.
type filler struct {
	*rand.Rand
	chance float64
	// A pointer leads here: upstream writes null for a pointer to nothing, which it never reads
	// back as one.
	pointed bool
}

func (f filler) fill(v reflect.Value, depth int) {
	if f.special(v, depth) {
		return
	}
	f.pointed = false
	// Deeper, fewer: the objects stay small.
	set := f.Float64() < f.chance*pow(0.9, depth)
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "TypeMeta" {
				f.fill(v.Field(i), depth+1)
			}
		}
	case reflect.Pointer:
		if set {
			v.Set(reflect.New(v.Type().Elem()))
			f.pointed = true
			f.fill(v.Elem(), depth+1)
		}
	case reflect.Slice:
		if !set {
			return
		}
		n := 1 + f.Intn(2)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			f.fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		if !set {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for range 1 + f.Intn(3) {
			key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			key.SetString(f.text())
			f.fill(elem, depth+1)
			v.SetMapIndex(key, elem)
		}
	case reflect.String:
		if set {
			v.SetString(f.text())
		}
	case reflect.Bool:
		v.SetBool(set)
	case reflect.Int32, reflect.Int64:
		if set {
			v.SetInt([]int64{1, -1, 127, 128, 65536, 1<<31 - 1, -1 << 31}[f.Intn(7)])
		}
		if set && v.Kind() == reflect.Int64 && f.Intn(3) == 0 {
			v.SetInt(int64(f.Uint64()))
		}
	case reflect.Uint8:
		v.SetUint(uint64(f.Intn(256)))
	case reflect.Float64:
		if set {
			v.SetFloat([]float64{1, 0.5, -2.25, 1e21, 1e-7, 12345.678}[f.Intn(6)])
		}
	case reflect.Interface:
		if set {
			v.Set(reflect.ValueOf(f.text()))
		}
	default:
		panic(v.Type().String())
	}
}

func pow(x float64, n int) float64 {
	y := 1.0
	for range n {
		y *= x
	}
	return y
}

func (f filler) text() string {
	return []string{"a", "web", "app.kubernetes.io/name", "x<y>&z", "\u00e9\u4e16\u2028\"\\\n\x01", "tls", strings.Repeat("long ", 30)}[f.Intn(7)]
}

func (f filler) special(v reflect.Value, depth int) bool {
	set := f.Float64() < f.chance || f.pointed
	f.pointed = false
	switch p := v.Addr().Interface().(type) {
	case *resource.Quantity:
		// As text: only what is parsed knows its form.
		*p = resource.MustParse([]string{"0", "1", "250m", "64Mi", "1500M", "3Gi", "7k"}[f.Intn(7)])
	case *metav1.Time:
		if set {
			*p = metav1.NewTime(time.Unix(int64(f.Intn(4e9))-2e9, 0))
		}
	case *metav1.MicroTime:
		if set {
			*p = metav1.NewMicroTime(time.UnixMicro(f.Int63n(4e15) - 2e15))
		}
	case *metav1.Duration:
		if set {
			p.Duration = time.Duration(f.Int63n(1e15) - 5e14)
		}
	case *intstr.IntOrString:
		if set {
			*p = intstr.Parse([]string{"80", "-5", "25%", "http"}[f.Intn(4)])
		}
	case *metav1.FieldsV1:
		if set {
			p.Raw = []byte(`{"f:metadata":{"f:name":{}},"f:spec":{".":{},"k:{\"name\":\"a\"}":{}}}`)
		}
	case *runtime.RawExtension:
		if set {
			p.Raw = []byte(`{"a":1,"b":[true,null,"x"],"c":{"d":-1.5}}`)
		}
	case *apiextensionsv1.JSON:
		if set {
			p.Raw = []byte([]string{`1`, `"x"`, `{"a":[]}`, `false`}[f.Intn(4)])
		}
	case *apiextensionsv1.JSONSchemaPropsOrBool:
		p.Allows = set
		if set && depth < 12 && f.Intn(2) == 0 {
			p.Schema = &apiextensionsv1.JSONSchemaProps{}
			f.fill(reflect.ValueOf(p.Schema).Elem(), depth+1)
		}
	case *apiextensionsv1.JSONSchemaPropsOrArray:
		if set && f.Intn(2) == 0 {
			p.JSONSchemas = make([]apiextensionsv1.JSONSchemaProps, 1)
			f.fill(reflect.ValueOf(&p.JSONSchemas[0]).Elem(), depth+3)
		} else {
			p.Schema = &apiextensionsv1.JSONSchemaProps{}
			f.fill(reflect.ValueOf(p.Schema).Elem(), depth+3)
		}
	case *apiextensionsv1.JSONSchemaPropsOrStringArray:
		if set {
			p.Property = []string{f.text()}
		} else {
			p.Schema = &apiextensionsv1.JSONSchemaProps{}
			f.fill(reflect.ValueOf(p.Schema).Elem(), depth+3)
		}
	default:
		return false
	}
	return true
}
