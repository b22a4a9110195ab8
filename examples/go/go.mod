module hotslot.dev/example

go 1.21

require (
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261110000943-09e21b237f2c
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	hotslot.dev/protos v0.0.0
)

replace hotslot.dev/protos => ./protos
