*** Settings ***
Documentation     The firmware boots, talks, computes what this computer computes, and survives a bad line.
Resource          ../../renode/tinytrain.robot
Suite Setup       Prepare Board    model=demo    scheme=sparse
Suite Teardown    Switch Off

*** Test Cases ***
Boots And Says Hello
    Board Should Say Hello

Inference Equals Host
    Inference Should Equal Host    images=8

Bad Frames Change Nothing
    Bad Frames Should Change Nothing
    Inference Should Equal Host    images=1
