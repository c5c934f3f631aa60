*** Settings ***
Documentation     A firmware that breaks says so, and where; one that does not fit is never built. The defects are in
...               zoo/model.c. On a real board this suite is skipped: it would have to be flashed for every test.
Resource          ../../renode/tinytrain.robot
Suite Setup       Emulator Should Be Available
Suite Teardown    Switch Off

*** Variables ***
${ZOO}            ${CURDIR}/zoo/model.c

*** Test Cases ***
Stack Overflow Is Reported
    Flash Firmware    model=${ZOO}    define=ZOO_STACK_OVERFLOW
    Training Should Fault    stack overflow

Wild Pointer Is Reported
    Flash Firmware    model=${ZOO}    define=ZOO_WILD_POINTER
    Training Should Fault    write to read-only memory 0x00000004 in store_through_wild_pointer

More SRAM Than The Chip Has Does Not Link
    Firmware Should Not Fit    model=${ZOO}    define=ZOO_MORE_SRAM_THAN_THE_CHIP    reason=region 'RAM'

*** Keywords ***
Emulator Should Be Available
    Skip If    '${TARGET}' == 'serial'    a board would have to be flashed with a broken firmware for every test
    Target Should Be Available
